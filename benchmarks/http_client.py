"""A small HTTP/1.1 client for loads that have to send each body exactly once, or at fixed times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import uvloop

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"


@dataclass
class Sent:
    """What became of a load.

    Attributes:
        due: when each body was to be sent, by the monotonic clock.
        answered: when its answer was there.
        statuses: of each answer; 0 where the connection was lost.
        began, ended: the first sending and the last answer.
    """

    due: list[float]
    answered: list[float] = field(init=False)
    statuses: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.answered = [0.0] * len(self.due)
        self.statuses = [0] * len(self.due)

    @property
    def refused(self) -> int:
        """Answers that are not 2xx."""
        return sum(not 200 <= status < 300 for status in self.statuses)

    @property
    def seconds(self) -> float:
        return max(self.answered) - min(self.due)

    def latencies_ms(self) -> list[float]:
        """Of the answers, from when the request was due: waiting for a free connection is part of it."""
        return [(end - due) * 1e3 for end, due in zip(self.answered, self.due, strict=True)]


def send_all(port: int, bodies: Sequence[bytes], connections: int) -> Sent:
    """Send every body once, each connection the next one as soon as it has its answer.

    Every body is due when it is sent.
    """
    return uvloop.run(_closed(port, bodies, connections))


def send_at_rate(port: int, bodies: Sequence[bytes], per_second: float, connections: int) -> Sent:
    """Send every body once, one after the other at a constant rate, whatever the server does.

    A body that finds every connection busy waits for one; its latency counts from when it was due.
    """
    return uvloop.run(_open(port, bodies, per_second, connections))


async def _closed(port: int, bodies: Sequence[bytes], connections: int) -> Sent:
    sent = Sent([0.0] * len(bodies))
    numbers = iter(range(len(bodies)))

    async def one_after_another() -> None:
        connection = await _connect(port)
        for number in numbers:
            sent.due[number] = time.monotonic()
            await _exchange(connection, bodies[number], number, sent)
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one_after_another())
    return sent


async def _open(port: int, bodies: Sequence[bytes], per_second: float, connections: int) -> Sent:
    idle: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
    for _ in range(connections):
        idle.put_nowait(await _connect(port))
    began = time.monotonic() + 0.1
    sent = Sent([began + number / per_second for number in range(len(bodies))])

    async def send(number: int) -> None:
        connection = await idle.get()
        if connection.is_closed:
            connection = await _connect(port)
        await _exchange(connection, bodies[number], number, sent)
        idle.put_nowait(connection)

    async with asyncio.TaskGroup() as group:
        for number in range(len(bodies)):
            wait = sent.due[number] - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(send(number))
    while not idle.empty():
        idle.get_nowait().close()
    return sent


async def _exchange(connection: _Connection, body: bytes, number: int, sent: Sent) -> None:
    sent.statuses[number] = await connection.post(body)
    sent.answered[number] = time.monotonic()


async def _connect(port: int) -> _Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
    return connection


class _Connection(asyncio.Protocol):
    """One request at a time; answers have to have a Content-Length."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    async def post(self, body: bytes) -> int:
        """The status of the answer; 0 if the connection was lost before it."""
        if self._transport is None or self.is_closed:
            return 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(
            b"POST /publish HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        return await self._answer

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed it, as servers do with idle connections."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(_HEAD_END)
        if not end:
            return
        at = head.lower().index(_LENGTH) + len(_LENGTH)
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        self._received = rest[length:]
        self._done(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._done(0)

    def _done(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)
