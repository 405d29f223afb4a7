"""The HTTP server of every role: uvicorn, with the deadline it lacks and none of its own logging."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_SECONDS: Final = 10.0
KEEP_ALIVE_SECONDS: Final = 75
"""An idle connection is kept so long: longer than the minute after which load balancers usually close theirs,
so that none sends a request on a connection that is being closed here."""


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
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, ceil(shutdown_grace_seconds)),
            )
        )


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
