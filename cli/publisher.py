"""Publishing batches of events to a gateway over HTTP, patiently."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from types import TracebackType
from typing import Final, Self

import httpx
import msgspec

from cli.key_header import key_header

_TAKEN_STATUS: Final = frozenset({200, 207})
_RETRIED_STATUS: Final = frozenset({408, 429, 502, 503, 504})
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class GaveUp(Exception):
    """The gateway did not take the batch; the text says why. Sending the same events again is safe."""


class Outcome(msgspec.Struct, frozen=True):
    """What the gateway said about the events of one batch.

    Attributes:
        accepted: events that are in the log.
        rejected: events refused for what they contain, by code.
        messages: a sentence about each of the first few of these.
    """

    accepted: int
    rejected: Counter[str]
    messages: Sequence[str] = ()


class Publisher:
    """Sends batches to `POST /publish`; a context that holds the connections.

    Args:
        url: the gateway's address, without a path.
        key: an ingest key, where the gateway has keys.
        connections: how many batches are sent at a time.
        retry_for: seconds for which a batch is tried again when the gateway is unreachable, full or asks to
            wait.

    Attributes:
        requests: requests made so far.
        retries: how many of them repeated an earlier one.
    """

    SHOWN: Final = 5

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        retry_for: float,
        key: str | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self.requests = 0
        self.retries = 0
        self._retry_for = retry_for
        self._random = random or Random()
        self._clock = clock
        self._client = httpx.AsyncClient(
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={b"content-type": b"application/json"} | key_header(key),
            # A proxy named in the environment is not meant for this machine itself.
            trust_env=httpx.URL(self.url).host not in _LOOPBACK,
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    async def publish(self, events: Sequence[bytes]) -> Outcome:
        """Send a batch until the gateway has answered for its events.

        Raises:
            GaveUp: not answered within `retry_for`, or answered in a way that trying again will not change.
        """
        body = b"[" + b",".join(events) + b"]"
        deadline = self._clock() + self._retry_for
        pause = _FIRST_PAUSE
        while True:
            self.requests += 1
            retry_after = 0.0
            try:
                response = await self._client.post(f"{self.url}/publish", content=body)
            except httpx.TransportError as error:
                trouble = f"cannot be reached ({str(error) or type(error).__name__})"
            else:
                if response.status_code not in _RETRIED_STATUS:
                    return self._outcome(response, len(events))
                trouble = f"answers {response.status_code} {response.reason_phrase}"
                retry_after = _seconds(response.headers.get("retry-after", ""))
            # Jitter on top of what the gateway asks for, so that clients it sent away do not return as one.
            wait = retry_after + self._random.uniform(0, pause)
            if self._clock() + wait > deadline:
                raise GaveUp(f"{self.url} {trouble}; gave up after {self._retry_for:g} s.")
            self.retries += 1
            pause = min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(wait)

    def _outcome(self, response: httpx.Response, sent: int) -> Outcome:
        """Raises GaveUp where the answer is not about the events but about the request, or makes no sense."""
        status = f"{response.status_code} {response.reason_phrase}"
        try:
            answer: _Accepted | _Problem
            if response.status_code in _TAKEN_STATUS:
                answer = _decode_accepted.decode(response.content)
            else:
                answer = _decode_problem.decode(response.content)
        except msgspec.DecodeError as error:
            raise GaveUp(
                f"{self.url} does not answer like an event aggregator ({status}); check --url."
            ) from error
        if isinstance(answer, _Problem) and answer.errors is None:
            raise GaveUp(f"{self.url} refuses the request ({status}): {answer.detail}")
        accepted = answer.accepted if isinstance(answer, _Accepted) else 0
        errors = answer.errors or []
        rejected = Counter(error.code for error in errors)
        unlisted = sent - accepted - len(errors)
        if unlisted:
            rejected["unlisted"] += unlisted
        return Outcome(accepted, rejected, [f"{e.code}: {e.message}" for e in errors[: self.SHOWN]])


class _EventError(msgspec.Struct):
    code: str
    message: str


class _Accepted(msgspec.Struct):
    accepted: int
    errors: list[_EventError] | None = None


class _Problem(msgspec.Struct):
    detail: str
    errors: list[_EventError] | None = None


_decode_accepted: Final = msgspec.json.Decoder(_Accepted)
_decode_problem: Final = msgspec.json.Decoder(_Problem)


def _seconds(retry_after: str) -> float:
    """A `Retry-After` in seconds; 0 where there is none, or a date, which no gateway of ours sends."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
