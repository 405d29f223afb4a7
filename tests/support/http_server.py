"""The real HTTP server on a free port of the loopback interface, in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from telemetry.server import HttpServer


@dataclass(frozen=True)
class RunningServer:
    """Where the server listens."""

    host: str
    port: int
    server: HttpServer

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextlib.asynccontextmanager
async def running_server(
    app: FastAPI,
    *,
    shutdown_grace_seconds: float = 5.0,
    header_timeout_seconds: float = 10.0,
) -> AsyncIterator[RunningServer]:
    """Serve the application until the block is left, with its lifespan."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = HttpServer(
        app,
        host="127.0.0.1",
        port=0,
        shutdown_grace_seconds=shutdown_grace_seconds,
        header_timeout_seconds=header_timeout_seconds,
    )
    task = asyncio.create_task(server.serve([listener]), name="test-http-server")
    try:
        async with asyncio.timeout(10):
            while not server.started:
                if task.done():
                    await task
                await asyncio.sleep(0.005)
        yield RunningServer("127.0.0.1", listener.getsockname()[1], server)
    finally:
        server.should_exit = True
        await task
        listener.close()


@dataclass(frozen=True)
class RawResponse:
    """An HTTP response read from a socket."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawConnection:
    """A connection that sends exactly the bytes it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def response(self, timeout: float = 10.0) -> RawResponse:
        """The next response; it has to have a content-length."""
        async with asyncio.timeout(timeout):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await self._reader.readexactly(int(headers["content-length"]))
            return RawResponse(int(head[0].split()[1]), headers, body)

    async def closed_by_peer(self, timeout: float = 10.0) -> bool:
        """Wait for the end of the stream."""
        async with asyncio.timeout(timeout):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True


@contextlib.asynccontextmanager
async def raw_connection(server: RunningServer) -> AsyncIterator[RawConnection]:
    """Open a connection; closed when the block is left."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
