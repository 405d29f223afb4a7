"""A TCP proxy that breaks connections on command: the network faults of the tests, without privileges."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

_CHUNK: Final = 64 * 1024
_T = TypeVar("_T")


class Direction(StrEnum):
    REQUESTS = "requests"
    RESPONSES = "responses"


@dataclass(frozen=True)
class Rule:
    """What happens to bytes in one direction; by default they pass.

    Attributes:
        held: nothing moves, as on a network that drops every packet; what was held goes on afterwards.
        dropped: bytes are read and thrown away. A connection that lost some is reset when this ends.
        delay: seconds each chunk waits.
        bytes_per_second: no faster than this, each connection for itself.
        cut_after: a connection is reset once so many further bytes of it have passed.
        silence_after: once these bytes have passed, nothing of the connection comes back any more.
    """

    held: bool = False
    dropped: bool = False
    delay: float = 0.0
    bytes_per_second: int | None = None
    cut_after: int | None = None
    silence_after: bytes | None = None


class TcpProxy:
    """Listens on a port of the loopback address and forwards to a target, as its rules say.

    Rules hold for open and for new connections, from the next chunk on. Methods may be called from any
    thread; they return when the rule is in force.
    """

    def __init__(self) -> None:
        self._rules = {direction: Rule() for direction in Direction}
        self._links: set[_Link] = set()
        self._refusing = False
        self._silenced = 0
        self._target = ("127.0.0.1", 0)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"tcp-proxy-{self.port}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def forward_to(self, host: str, port: int) -> None:
        """Where new connections go."""
        self._call(lambda: setattr(self, "_target", (host, port)))

    def heal(self) -> None:
        """Let everything pass again. Connections that lost bytes are reset: what follows makes no sense."""

        def act() -> None:
            self._refusing = False
            self._silenced = 0
            for link in list(self._links):
                if link.lost_bytes or link.silent:
                    link.reset()
            for direction in Direction:
                self._set(direction, Rule())

        self._call(act)

    def blackhole(self, *directions: Direction) -> None:
        """Nothing moves any more; connections stay open, and new ones are accepted but not answered."""
        self._rule(directions, held=True)

    def drop(self, *directions: Direction) -> None:
        """Throw away what comes; requests still arrive if only the responses are dropped."""
        self._rule(directions, dropped=True)

    def slow(self, *directions: Direction, delay: float = 0.0, bytes_per_second: int | None = None) -> None:
        self._rule(directions, delay=delay, bytes_per_second=bytes_per_second)

    def cut_after(self, count: int, *directions: Direction) -> None:
        """Reset each connection once `count` further bytes have passed."""

        def act() -> None:
            for link in self._links:
                link.passed = dict.fromkeys(Direction, 0)

        self._call(act)
        self._rule(directions, cut_after=count)

    def silence_after(self, marker: bytes) -> None:
        """Deliver requests with these bytes, but not the answer, nor what else comes on that connection."""
        self._rule((Direction.REQUESTS,), silence_after=marker)

    @property
    def silenced(self) -> int:
        """Connections silenced since the last `heal`."""
        return self._call(lambda: self._silenced)

    def reset_all(self) -> int:
        """Reset (RST) every open connection, on both sides; returns how many."""

        def act() -> int:
            links = list(self._links)
            for link in links:
                link.reset()
            return len(links)

        return self._call(act)

    def refuse(self) -> None:
        """Reset every open connection, and every new one at once, until `heal`."""
        self._call(lambda: setattr(self, "_refusing", True))
        self.reset_all()

    @property
    def connections(self) -> int:
        return self._call(lambda: len(self._links))

    def close(self) -> None:
        if self._thread.is_alive():
            self.reset_all()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _rule(self, directions: tuple[Direction, ...], **changes: Any) -> None:
        def act() -> None:
            for direction in directions or tuple(Direction):
                self._set(direction, replace(self._rules[direction], **changes))

        self._call(act)

    def _set(self, direction: Direction, rule: Rule) -> None:
        self._rules[direction] = rule
        for link in self._links:
            link.changed.set()

    def _call(self, act: Callable[[], _T]) -> _T:
        """Run in the proxy's thread, and wait for it."""

        async def run() -> _T:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._listener.setblocking(False)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._listener))
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        # Sockets are closed by callbacks of what was closed just now.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            _reset(writer)
            return
        link = _Link(writer, up_writer)
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._pump(link, Direction.REQUESTS, reader, up_writer)),
            asyncio.create_task(self._pump(link, Direction.RESPONSES, up_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            writer.close()
            up_writer.close()

    async def _pump(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while link.alive():
                chunk = await reader.read(_CHUNK)
                while self._rules[direction].held and link.alive():
                    link.changed.clear()
                    await link.changed.wait()
                if not link.alive():
                    return
                if not chunk:
                    break
                await self._pass_on(link, direction, chunk, writer)
            if link.alive() and writer.can_write_eof():
                writer.write_eof()
        except OSError:
            # The other side has to learn of it as well.
            link.reset()

    async def _pass_on(
        self, link: _Link, direction: Direction, chunk: bytes, writer: asyncio.StreamWriter
    ) -> None:
        rule = self._rules[direction]
        if rule.silence_after is not None and rule.silence_after in chunk and not link.silent:
            link.silent = True
            self._silenced += 1
        if rule.dropped or (link.silent and direction is Direction.RESPONSES):
            link.lost_bytes = True
            return
        if rule.delay:
            await asyncio.sleep(rule.delay)
        if rule.bytes_per_second is not None:
            await asyncio.sleep(len(chunk) / rule.bytes_per_second)
        if rule.cut_after is not None:
            room = rule.cut_after - link.passed[direction]
            link.passed[direction] += len(chunk)
            if len(chunk) > room:
                writer.write(chunk[: max(0, room)])
                link.reset()
                return
        writer.write(chunk)
        await writer.drain()


class _Link:
    """A connection and its continuation."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.changed = asyncio.Event()
        self._dead = False
        self.silent = False
        self.lost_bytes = False
        self.passed = dict.fromkeys(Direction, 0)

    def alive(self) -> bool:
        return not self._dead

    def reset(self) -> None:
        self._dead = True
        self.changed.set()
        for writer in self._writers:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connected = writer.get_extra_info("socket")
    if connected is not None:
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
