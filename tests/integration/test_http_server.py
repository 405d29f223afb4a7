"""The HTTP server as a process: what a signal does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import encode, event

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = """
import asyncio, socket, sys
from ingest_api.app import create_gateway_app
from ingest_api.gateway import Gateway
from ingest_api.settings import IngestSettings
from telemetry.logging import configure_logging
from telemetry.server import HttpServer
from tests.support.producer import MemoryProducer

async def main():
    producer = MemoryProducer()
    producer.gate.clear()
    gateway = Gateway(producer, IngestSettings())
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(
        create_gateway_app(gateway), host="127.0.0.1", port=0, shutdown_grace_seconds=10,
        drain_delay_seconds=float(sys.argv[1]), on_drain=gateway.begin_drain,
    )
    async def open_gate():
        print(listener.getsockname()[1], flush=True)
        await producer.entered.wait()
        print("publishing", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        producer.gate.set()
    opening = asyncio.create_task(open_gate())
    await server.serve([listener])

configure_logging("test", json=True)
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def server_process(drain_delay_seconds: float) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVER,
        str(drain_delay_seconds),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process, f"http://127.0.0.1:{await line(process)}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode().strip()


async def readiness_lost(http: httpx.AsyncClient) -> httpx.Response:
    async with asyncio.timeout(10):
        while (answer := await http.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
    return answer


async def test_first_signal_drains_and_the_request_in_flight_is_answered() -> None:
    async with (
        server_process(drain_delay_seconds=0.5) as (process, url),
        httpx.AsyncClient(base_url=url) as http,
    ):
        publish = asyncio.create_task(http.post("/publish", json=event(), timeout=20))
        assert await line(process) == "publishing"
        process.send_signal(signal.SIGTERM)
        assert (await readiness_lost(http)).json() == {"status": "draining"}
        assert process.stdin is not None
        process.stdin.write(b"\n")
        response = await publish
        assert (response.status_code, response.json()["accepted"]) == (200, 1)
        async with asyncio.timeout(10):
            _, log = await process.communicate()
        # The signal is raised again after the stop, so that a supervisor sees why the process ended.
        assert process.returncode == -signal.SIGTERM
        entries = [json.loads(entry) for entry in log.decode().splitlines()]
        assert [e["http.route"] for e in entries if e["event"] == "request"] == ["/publish"]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_does_not_wait_for_the_drain_delay(first: signal.Signals) -> None:
    async with (
        server_process(drain_delay_seconds=60) as (process, url),
        httpx.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/readyz")).status_code == 200
        process.send_signal(first)
        await readiness_lost(http)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await process.communicate()


async def test_answer_bytes_survive_a_body_that_is_refused_unread() -> None:
    # The rest of a refused body is read and dropped, so that the client gets to see the answer.
    async with server_process(drain_delay_seconds=0) as (_, url), httpx.AsyncClient(base_url=url) as http:
        body = encode([event()]) + b" " * (11 * 1024 * 1024)
        for _ in range(5):
            response = await http.post(
                "/publish", content=body, headers={"content-type": "application/json"}, timeout=20
            )
            assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
