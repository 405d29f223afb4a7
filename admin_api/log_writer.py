"""The way of a dead letter back into the log."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import structlog

from broker.errors import BrokerError, LogFull, LogUnavailable, ProduceOutcomeUnknown, RecordTooLarge
from broker.ports import Headers, NewRecord, Producer
from db.dead_letter_status import Outcome
from db.dead_letter_store import ReplayDraft
from db.dead_letters import REPLAY_OF
from events.codec import decode_event
from events.errors import InvalidEvent
from events.event import log_key

INGRESS: Final = "ingress"
_OVERDUE_S: Final = 1.0
"""Seconds past its deadline after which a producer that has not given up by itself is cancelled."""
_LOGGER: Final = structlog.get_logger("admin.log_writer")


def replayed_record(draft: ReplayDraft) -> NewRecord:
    """The record to append: the original headers, and two that say where it comes from.

    An edited event gets the key the gateway would give it; so does one without a key, if it is an event.
    """
    headers: Headers = (
        *((name, value) for name, value in draft.headers if name not in (REPLAY_OF, INGRESS)),
        (REPLAY_OF, b"%d" % draft.dead_letter_id),
        (INGRESS, b"replay"),
    )
    key = draft.key
    if key is None or draft.edited:
        try:
            event = decode_event(draft.value)
        except InvalidEvent:
            key = key or b""
        else:
            key = log_key(event.topic, event.event_id)
    return NewRecord(key, draft.value, headers)


class LogWriter:
    """A producer that is there when the log is. Owns it between `start` and `stop`.

    Args:
        timeout: seconds to wait for an acknowledgement.
    """

    def __init__(self, producer: Producer, *, timeout: float) -> None:
        self._producer = producer
        self._timeout = timeout
        self._connecting: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self.is_connected = False

    def start(self) -> None:
        """Connect in the background, for as long as that takes."""
        self._connecting = asyncio.create_task(self._connect(), name="admin-log-writer-connect")

    async def stop(self) -> None:
        """Finish what is in flight, bounded in time."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        self.is_connected = False
        await self._producer.stop()

    def require_connected(self) -> None:
        """Raise LogUnavailable, before anything is changed, if a record could not be sent now."""
        if not self.is_connected:
            raise LogUnavailable(self._trouble)

    async def send(self, draft: ReplayDraft) -> tuple[Outcome, BrokerError | None]:
        """Append one record; returns in bounded time what became of it, and the trouble if there was any."""
        try:
            async with asyncio.timeout(self._timeout + _OVERDUE_S):
                await self._producer.publish([replayed_record(draft)], timeout=self._timeout)
        except (LogFull, RecordTooLarge) as error:
            # A record alone is refused as a whole.
            return Outcome.NOT_SENT, error
        except BrokerError as error:
            return Outcome.UNKNOWN, error
        except TimeoutError:
            return Outcome.UNKNOWN, ProduceOutcomeUnknown()
        return Outcome.ACKNOWLEDGED, None

    async def _connect(self) -> None:
        delay = 0.25
        while not self.is_connected:
            try:
                await self._producer.start()
            except BrokerError as error:
                # Also a topic that is missing: it can still be created, and then all is well.
                if self._trouble is None:
                    _LOGGER.warning("log unavailable; nothing can be replayed", detail=str(error))
                self._trouble = str(error)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, 5.0)
            else:
                self.is_connected = True
