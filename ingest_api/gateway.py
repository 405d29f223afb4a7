"""The gateway's use case: the bytes of a request to records the log has acknowledged."""

from __future__ import annotations

import asyncio
import random
from enum import StrEnum
from time import monotonic
from typing import Final

import msgspec
import structlog

from broker.errors import (
    BrokerError,
    LogFull,
    LogUnavailable,
    ProduceOutcomeUnknown,
    RecordTooLarge,
)
from broker.ports import Headers, NewRecord, Producer
from events.codec import check_events
from events.errors import InvalidCode, InvalidEvent
from events.event import log_key
from events.split import split_events
from ingest_api.body import InFlight
from ingest_api.metrics import GatewayMetrics
from ingest_api.permit import Permit, Permits
from ingest_api.refusal import TOPIC_NOT_ALLOWED, EventError, Reason, Refused, Rejected
from ingest_api.settings import IngestSettings
from telemetry.clock import now_text
from telemetry.health import Readiness
from telemetry.metrics import Metrics
from telemetry.tracing import NoTracing, TraceContext, Tracing

TURN_S: Final = 0.005
"""Seconds of decoding after which other requests get a turn."""

_RETRY_IS_SAFE: Final = "Send the whole request again with the same event ids; that is always safe."
_WHOLE_BODY: Final = {
    InvalidCode.INVALID_ENCODING: Reason.INVALID_ENCODING,
    InvalidCode.INVALID_JSON: Reason.INVALID_JSON,
}
_LOGGER: Final = structlog.get_logger("gateway")


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a request of which at least one event was accepted.

    Attributes:
        accepted: events that are valid and durable in the log.
        rejected: the others.
    """

    accepted: int
    rejected: Rejected


class _State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    DRAINING = "draining"


_TAKES_REQUESTS: Final = frozenset({_State.READY, _State.LEAVING})


class Gateway:
    """Takes request bodies and answers once the log has acknowledged every valid event in them.

    Owns the producer between `start` and `stop`. Once started it stays ready while the log cannot be
    reached: requests are refused with `log_unavailable` until it can.
    """

    def __init__(
        self,
        producer: Producer,
        settings: IngestSettings,
        *,
        metrics: GatewayMetrics | None = None,
        tracing: Tracing | None = None,
        permits: Permits | None = None,
    ) -> None:
        self.settings = settings
        self.in_flight = InFlight(settings.max_in_flight_bytes)
        self._producer = producer
        self.metrics = metrics or GatewayMetrics(Metrics())
        self.metrics.follow_in_flight(lambda: producer.in_flight)
        self.permits = permits or Permits()
        self._tracing = tracing or NoTracing()
        self._state = _State.STARTING
        self._start_called = False
        self._connected = False
        self._connecting: asyncio.Task[None] | None = None
        self._log_error: str | None = None

    async def start(self) -> None:
        """Start the producer and take requests; keeps trying in the background if the log is unreachable.

        Idempotent.

        Raises:
            TopicMissing, LogMisconfigured: an operator has to change something first.
        """
        if self._start_called:
            return
        self._start_called = True
        try:
            await self._producer.start()
        except LogUnavailable as error:
            self._log_failed(error)
            self._connecting = asyncio.create_task(self._keep_connecting(), name="gateway-connect")
        else:
            self._connected = True
        if self._state is _State.STARTING:
            self._state = _State.READY

    def begin_leave(self) -> None:
        """Stop being ready, and ask clients to connect anew for their next request; take requests as before.
        Idempotent."""
        if self._state is not _State.DRAINING:
            self._state = _State.LEAVING

    @property
    def is_leaving(self) -> bool:
        """Whether a connection should be closed once its request is answered."""
        return self._state is _State.LEAVING

    def begin_drain(self) -> None:
        """Stop being ready and refuse new requests; those in flight go on. Idempotent."""
        self._state = _State.DRAINING

    async def stop(self) -> None:
        """Drain, wait for the requests in flight (at most `shutdown_grace_seconds`), stop the producer."""
        self.begin_drain()
        try:
            async with asyncio.timeout(self.settings.shutdown_grace_seconds):
                await self.in_flight.wait_idle()
        except TimeoutError:
            _LOGGER.error("requests still in flight at stop", requests=self.in_flight.requests)
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await self._producer.stop()

    def readiness(self) -> Readiness:
        """Ready from `start` until `begin_drain`, whatever the log does; its state is in the detail."""
        log: dict[str, object] = {"status": "ok" if self._log_error is None else "unavailable"}
        if self._log_error is not None:
            log["error"] = self._log_error
        log["records_in_flight"] = self._producer.in_flight
        requests = {
            "status": "ok",
            "in_flight": self.in_flight.requests,
            "in_flight_bytes": self.in_flight.bytes,
            "max_in_flight_bytes": self.settings.max_in_flight_bytes,
        }
        return Readiness(
            ready=self._state is _State.READY,
            status=self._state.value,
            dependencies={"log": log, "requests": requests},
        )

    def require_ready(self) -> None:
        """Raise Refused (`draining`) unless requests are taken."""
        if self._state not in _TAKES_REQUESTS:
            raise Refused(
                Reason.DRAINING, f"The gateway is {self._state.value} and takes no requests; send it again."
            )

    async def publish(
        self, body: bytes, *, permit: Permit | None = None, trace: TraceContext | None = None
    ) -> Accepted:
        """Publish the events of a body: one event, or an array of them.

        Returns only after the log has acknowledged every valid event. An invalid event does not keep the
        others from being published.

        Args:
            permit: of its sender; None lets everything be published.
            trace: of the request; the records carry it, or that of the span it is the parent of.

        Raises:
            Refused: with the reason; for all but the log's reasons nothing was published.
        """
        with self._tracing.send(trace) as sending:
            raw_events = self._split(body, permit)
            headers = self._headers(sending.context)
            rejected = Rejected()
            records: list[NewRecord] = []
            turn_ends = monotonic() + TURN_S
            following = enumerate(raw_events)
            for portion in check_events(raw_events):
                for checked, (index, raw) in zip(portion, following, strict=False):
                    record = _record(index, raw, checked, headers, permit)
                    if isinstance(record, NewRecord):
                        records.append(record)
                    else:
                        rejected.add(record)
                if monotonic() > turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = monotonic() + TURN_S
            if rejected.count:
                self.metrics.rejected(rejected)
            if not records:
                raise _none_acceptable(rejected)
            sending.count(len(records))
            await self._append(records)
        self.metrics.accepted(records)
        return Accepted(accepted=len(records), rejected=rejected)

    def _split(self, body: bytes, permit: Permit | None) -> list[bytes]:
        limit = self.settings.max_events
        if permit is not None:
            permit.take_bytes(len(body))
        try:
            raw_events = split_events(body, limit)
        except InvalidEvent as error:
            raise Refused(_WHOLE_BODY.get(error.code, Reason.SCHEMA), error.message) from None
        if len(raw_events) > limit:
            raise Refused(
                Reason.TOO_MANY_EVENTS,
                f"The request has more than {limit:,} events. Send them in several requests.",
            )
        if permit is not None:
            permit.take_events(len(raw_events))
        return raw_events

    def _headers(self, trace: TraceContext | None) -> Headers:
        headers: Headers = (("received_at", now_text().encode()), ("ingress", b"http"))
        return headers if trace is None else (*headers, *trace.record_headers())

    async def _append(self, records: list[NewRecord]) -> None:
        timeout = self.settings.publish_timeout_seconds
        try:
            with self.metrics.producing():
                if not self._connected:
                    raise LogUnavailable
                await self._producer.publish(records, timeout=timeout)
        except RecordTooLarge as error:
            raise Refused(
                Reason.EVENT_TOO_LARGE,
                "The log takes no record as large as one of these events; others may be in it already.",
            ) from error
        except BrokerError as error:
            self._log_failed(error)
            raise _log_refused(error, timeout) from error
        if self._log_error is not None:
            self._log_error = None
            _LOGGER.info("log available again")

    def _log_failed(self, error: BrokerError) -> None:
        """Remember the trouble for `readiness`, and log it once until the log is back."""
        if self._log_error is None:
            _LOGGER.warning("log unavailable", **{"error.type": type(error).__name__}, error=str(error))
        self._log_error = str(error) or "The log did not answer in time."

    async def _keep_connecting(self) -> None:
        delay = 0.25
        while not self._connected:
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, 5.0)
            try:
                await self._producer.start()
            except BrokerError as error:
                # Also where the topic turns out to be missing: it can still be created, and then all is well.
                self._log_failed(error)
            else:
                self._connected = True


def _record(
    index: int,
    raw: bytes,
    checked: tuple[str, str] | InvalidEvent,
    headers: Headers,
    permit: Permit | None,
) -> NewRecord | EventError:
    """The record of an event, or why there is none. Raises Refused if the body as a whole is broken."""
    if isinstance(checked, InvalidEvent):
        reason = _WHOLE_BODY.get(checked.code)
        if reason is not None:
            raise Refused(reason, f"Event {index:,}: {checked.message}")
        return EventError(index, checked.event_id, checked.code, checked.message)
    topic, event_id = checked
    barred = permit and permit.topic_error(index, topic, event_id)
    return barred or NewRecord(log_key(topic, event_id), raw, headers)


def _none_acceptable(rejected: Rejected) -> Refused:
    if not rejected.count:
        return Refused(Reason.SCHEMA, "The array is empty; send at least one event.")
    codes = set(rejected.codes)
    first = rejected.errors[0].message
    if codes == {InvalidCode.TOO_LARGE}:
        return Refused(Reason.EVENT_TOO_LARGE, first, rejected=rejected)
    if codes == {TOPIC_NOT_ALLOWED}:
        return Refused(Reason.TOPIC_NOT_ALLOWED, first, rejected=rejected)
    message = (
        first if rejected.count == 1 else f"None of the {rejected.count:,} events is valid. First: {first}"
    )
    return Refused(Reason.NO_EVENT_ACCEPTABLE, message, rejected=rejected)


def _log_refused(error: BrokerError, timeout: float) -> Refused:
    if isinstance(error, ProduceOutcomeUnknown):
        return Refused(
            Reason.OUTCOME_UNKNOWN,
            f"The log did not acknowledge within {timeout:g} seconds; some events may be in it."
            f" {_RETRY_IS_SAFE}",
        )
    if isinstance(error, LogFull):
        return Refused(
            Reason.LOG_FULL, f"The log is full at the moment; some events may be in it. {_RETRY_IS_SAFE}"
        )
    return Refused(
        Reason.LOG_UNAVAILABLE,
        f"The log cannot be reached at the moment; some events may be in it. {_RETRY_IS_SAFE}",
    )
