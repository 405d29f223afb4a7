"""The HTTP server of every role: uvicorn, with the deadline it lacks and none of its own logging."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_SECONDS: Final = 10.0
KEEP_ALIVE_SECONDS: Final = 75
"""An idle connection is kept so long: longer than the minute after which load balancers usually close theirs,
so that none sends a request on a connection that is being closed here."""


_MOST_HELD_BYTES: Final = 64 * 1024


class HttpServer(uvicorn.Server):
    """Serves one application until `should_exit`.

    Requests in flight then have `shutdown_grace_seconds` to finish, after which the application's lifespan
    ends. Announce the stop before (fail readiness, refuse new work): connections are closed at once.

    Args:
        host, port: where to listen; port 0 picks a free one.
        shutdown_grace_seconds: rounded up to whole seconds.
        header_timeout_seconds: for a request's head, from its first byte or from connecting.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        shutdown_grace_seconds: float,
        header_timeout_seconds: float = HEADER_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=_protocol(header_timeout_seconds),
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, ceil(shutdown_grace_seconds)),
            )
        )


class _Turns:
    """A transport that is given what is written to it in one turn of the event loop in one piece.

    uvicorn writes the head of a response and its body apart: two system calls, and a client that is woken
    twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)
        self._size += len(data)
        if self._size > _MOST_HELD_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        written, self._written, self._size = self._written, [], 0
        if written and not self._transport.is_closing():
            self._transport.writelines(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _protocol(header_timeout_seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, closing connections whose request head does not arrive in time."""

    class Protocol(HttpToolsProtocol):
        _head_deadline: asyncio.TimerHandle | None = None
        _head_begun = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(cast(asyncio.Transport, _Turns(transport, self.loop)))
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_arrived()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # Most heads arrive whole: a timer only for one that did not.
            if self._head_begun:
                self._expect_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_begun = True

        def on_headers_complete(self) -> None:
            self._head_begun = False
            self._head_arrived()
            super().on_headers_complete()

        def _expect_head(self) -> None:
            if self._head_deadline is None:
                self._head_deadline = self.loop.call_later(header_timeout_seconds, self._head_overdue)

        def _head_arrived(self) -> None:
            if self._head_deadline is not None:
                self._head_deadline.cancel()
                self._head_deadline = None

        def _head_overdue(self) -> None:
            self._head_deadline = None
            if self.cycle is not None and not self.cycle.response_complete:
                # A pipelined request; the one before it is still being answered.
                self._expect_head()
            else:
                self.transport.close()

    return Protocol
