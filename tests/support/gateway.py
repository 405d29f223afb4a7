"""A gateway over a real socket, with a producer in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from ingest_api.app import create_gateway_app
from ingest_api.gateway import Gateway
from ingest_api.settings import IngestSettings
from tests.support.hostile import encode, event
from tests.support.http_server import RunningServer, running_server
from tests.support.producer import MemoryProducer

__all__ = ["Running", "assert_problem", "encode", "event", "head", "running", "until"]

_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Running:
    gateway: Gateway
    producer: MemoryProducer
    server: RunningServer
    client: httpx.AsyncClient

    async def publish(self, content: Any, **headers: str) -> httpx.Response:
        return await self.client.post("/publish", content=content, headers={**_JSON, **headers})


@asynccontextmanager
async def running(
    producer: MemoryProducer | None = None, settings: IngestSettings | None = None, **server: Any
) -> AsyncIterator[Running]:
    producer = producer or MemoryProducer()
    gateway = Gateway(producer, settings or IngestSettings())
    app = create_gateway_app(gateway)
    async with (
        running_server(app, **server) as served,
        httpx.AsyncClient(base_url=served.url, timeout=20) as client,
    ):
        yield Running(gateway, producer, served, client)


def assert_problem(response: httpx.Response) -> None:
    document = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code", "retryable", "request_id"} <= document.keys()
    assert document["status"] == response.status_code
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["retryable"] is (response.status_code in {408, 503})
    assert ("retry-after" in response.headers) is (response.status_code == 503)


def head(*headers: str) -> bytes:
    """The head of a publish request."""
    lines = ["POST /publish HTTP/1.1", "host: x", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - the condition is another side's state
            await asyncio.sleep(0.005)
