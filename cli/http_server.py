"""The HTTP server of the processes: uvicorn, with our signals and our way of stopping."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

from starlette.types import ASGIApp

from cli.process import StartFailure
from telemetry.server import HttpServer


class _Server(HttpServer):
    """Leaves the signals to the process, and says when it listens."""

    def __init__(self, app: ASGIApp, grace_seconds: float, on_listening: Callable[[], None]) -> None:
        super().__init__(app, host="", port=0, shutdown_grace_seconds=grace_seconds)
        self._on_listening = on_listening

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()


def bind(host: str, port: int) -> socket.socket:
    """Bind a listening address.

    Raises:
        StartFailure: the port is taken, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartFailure(
                f"port {port} on {host} is in use by another process; stop it, or choose another port"
                " (`aggregator dev --port`, or AGGREGATOR_INGEST__PORT, AGGREGATOR_WORKER__PORT,"
                " AGGREGATOR_ADMIN__PORT)."
            ) from None
        raise StartFailure(f"cannot listen on {host} port {port}: {error.strerror}.") from None
    listener.setblocking(False)
    return listener


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    on_listening: Callable[[], None],
    on_stopping: Callable[[], None],
    grace_seconds: float,
    on_leaving: Callable[[], None] = lambda: None,
    delay_seconds: float = 0.0,
) -> None:
    """Serve until `stop` is set, then finish the requests in flight, at most `grace_seconds`.

    `on_leaving` runs as soon as it is set; `delay_seconds` later, `on_stopping`, and the door closes. In
    between everything is answered as before, but for readiness: whoever sends requests here has that long to
    notice.
    """
    server = _Server(app, grace_seconds, on_listening)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
    stopping = asyncio.create_task(stop.wait(), name="wait for stop")
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    on_leaving()
    if delay_seconds:
        await asyncio.wait({serving}, timeout=delay_seconds)
    on_stopping()
    server.should_exit = True
    stopping.cancel()
    await serving
