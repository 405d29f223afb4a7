"""The HTTP server of every role: uvicorn, with deadlines it lacks and a stop that is announced first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S: Final = 10.0
"""Seconds a client has to send a request's head, from its first byte or from connecting."""


class HttpServer(uvicorn.Server):
    """Serves one application until SIGTERM, SIGINT or `should_exit`.

    A signal first calls `on_drain`, so that readiness fails and new work is refused, and stops the server
    `drain_delay_seconds` later; a second signal stops it at once. Requests in flight then have
    `shutdown_grace_seconds` to finish, after which the application's lifespan ends.

    Args:
        host, port: where to listen; port 0 picks a free one.
        shutdown_grace_seconds: rounded up to whole seconds.
        on_drain: has to be quick and must not raise; it runs inside the signal's delivery.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        shutdown_grace_seconds: float,
        on_drain: Callable[[], None] = lambda: None,
        drain_delay_seconds: float = 0.0,
        header_timeout_seconds: float = HEADER_TIMEOUT_S,
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
                timeout_graceful_shutdown=max(1, -int(-shutdown_grace_seconds // 1)),
            )
        )
        self._on_drain = on_drain
        self._drain_delay_seconds = drain_delay_seconds
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def begin_drain(self) -> None:
        """Announce the stop; it follows after the drain delay."""
        self._draining = True
        self._on_drain()
        if self._loop is None or self._drain_delay_seconds <= 0:
            self.should_exit = True
        else:
            self._loop.call_later(self._drain_delay_seconds, self._exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining or self._loop is None:
            super().handle_exit(sig, frame)
            return
        # uvicorn raises the signal again once it has stopped, so that the exit status tells.
        self._captured_signals.append(sig)
        self._loop.call_soon_threadsafe(self.begin_drain)

    def _exit(self) -> None:
        self.should_exit = True


def _protocol(header_timeout_seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, closing connections whose request head does not arrive in time."""

    class Protocol(HttpToolsProtocol):
        _head_deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_arrived()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._expect_head()

        def on_headers_complete(self) -> None:
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
