"""The production roles: one process each, configured by environment."""

from __future__ import annotations

import asyncio

import structlog

from broker.errors import LogUnavailable
from broker.kafka import KafkaLog
from broker.ports import LogAdmin
from cli.http_server import bind, serve
from cli.process import once_available, run_process
from cli.settings import Settings, settings_or_exit
from db import migrations
from db.engine import Engine, open_engine

_log = structlog.get_logger("process")


def run_gateway() -> None:
    """`aggregator gateway`: HTTP into the log. Starts without a broker, and answers 503 until there is one."""
    settings = settings_or_exit()

    async def main(stop: asyncio.Event) -> None:
        from ingest_api.app import create_gateway_app
        from ingest_api.gateway import Gateway

        log = KafkaLog(settings.require_kafka())
        listener = bind(settings.ingest.host, settings.ingest.port)
        producer = log.producer()
        connecting: asyncio.Task[None] | None = None
        try:
            await producer.start()
        except LogUnavailable as error:
            _log.warning("the log cannot be reached; answering 503 until it can", detail=str(error))
            connecting = asyncio.create_task(_connect(producer.start, stop), name="connect producer")
        gateway = Gateway(producer, settings.ingest)
        try:
            await serve(
                create_gateway_app(gateway, settings.ingest),
                listener,
                stop,
                on_listening=lambda: _log.info("listening", host=settings.ingest.host, port=settings.ingest.port),
                on_stopping=gateway.begin_drain,
                grace_seconds=settings.ingest.shutdown_grace_seconds,
            )
        finally:
            if connecting is not None:
                connecting.cancel()
            await producer.stop()

    run_process("aggregator-gateway", settings.log, main)
