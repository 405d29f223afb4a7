"""The production roles: one process each, configured by environment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from broker.kafka import KafkaLog
from cli.access import keyring_for
from cli.http_server import bind, serve
from cli.process import once_available, run_process
from cli.settings import Settings, settings_or_exit
from cli.store_metrics import store_metrics
from cli.tracing import tracing
from db import migrations
from db.engine import Engine, open_engine
from telemetry.metrics import Metrics

_log = structlog.get_logger("process")


def run_gateway() -> None:
    """`aggregator gateway`: HTTP into the log. Starts without a broker; answers 503 until there is one."""
    settings = settings_or_exit()

    async def main(stop: asyncio.Event) -> None:
        from access.middleware import guard
        from ingest_api.app import create_gateway_app
        from ingest_api.gateway import Gateway
        from ingest_api.metrics import GatewayMetrics
        from ingest_api.permit import Permits

        ingest = settings.ingest
        log = KafkaLog(settings.require_kafka())
        keyring = keyring_for(settings.keys, ingest.host)
        listener = bind(ingest.host, ingest.port)
        async with tracing("aggregator-gateway", log.topic) as tracer:
            gateway = Gateway(
                log.producer(),
                ingest,
                metrics=GatewayMetrics(Metrics(settings.telemetry)),
                tracing=tracer,
                permits=Permits(keyring),
            )
            app = create_gateway_app(gateway)
            guard(app, keyring)
            await gateway.start()
            try:
                await serve(
                    app,
                    listener,
                    stop,
                    on_listening=lambda: _log.info("listening", host=ingest.host, port=ingest.port),
                    on_leaving=gateway.begin_leave,
                    delay_seconds=ingest.drain_delay_seconds,
                    on_stopping=gateway.begin_drain,
                    grace_seconds=ingest.shutdown_grace_seconds,
                )
            finally:
                await gateway.stop()

    run_process("aggregator-gateway", settings.log, main)


def run_worker_role() -> None:
    """`aggregator worker`: from the log into the database. Waits for both, but not for a missing schema."""
    settings = settings_or_exit()

    async def main(stop: asyncio.Event) -> None:
        from cli.worker_health import serve_health
        from cli.worker_process import WorkerProcess

        kafka = settings.require_kafka()
        log = KafkaLog(kafka)
        metrics = Metrics(settings.telemetry)
        with _store(settings, "aggregator worker") as engine:
            async with tracing("aggregator-worker", log.topic, kafka.group_id) as tracer:
                worker = WorkerProcess(
                    log, engine, settings.worker, settings.retention, metrics=metrics, tracing=tracer
                )
                async with serve_health(settings.worker, worker) as health, store_metrics(metrics, engine):
                    await _require_schema(engine, stop)
                    await _require_topic(log, stop)
                    if not stop.is_set():
                        health.begin_work()
                        _log.info("working", topic=log.topic)
                        await worker.work_until(stop)
            _log.info("stopped; everything read was stored or will be read again")

    run_process("aggregator-worker", settings.log, main)


def run_admin() -> None:
    """`aggregator admin`: the read side, and what is done about dead letters. Answers 503 while the database
    is away; without a broker, only where a record is to be replayed."""
    settings = settings_or_exit()

    async def main(stop: asyncio.Event) -> None:
        from access.middleware import guard
        from admin_api.app import create_admin_app
        from admin_api.dead_letter_office import DeadLetterOffice
        from admin_api.health import AdminHealth
        from admin_api.log_view import LogView
        from db.queries import StoreQueries

        admin = settings.admin
        log = KafkaLog(settings.require_kafka())
        with (
            _store(settings, "aggregator admin", read_only=True) as engine,
            _store(settings, "aggregator admin (writing)") as writer,
        ):
            keyring = keyring_for(settings.keys, admin.host)
            listener = bind(admin.host, admin.port)
            await _require_schema(engine, stop)
            queries = StoreQueries.of(
                engine, log.topic, timeout=admin.query_timeout_seconds, max_page_bytes=admin.max_page_bytes
            )
            view = LogView(log.admin(), log.topic, timeout=admin.log_timeout_seconds)
            health = AdminHealth(queries.stats, view)
            office = DeadLetterOffice(
                writer, log.producer(), queries, view, publish_timeout=admin.publish_timeout_seconds
            )
            metrics = Metrics(settings.telemetry)
            app = create_admin_app(queries, view, admin, health, office, metrics)
            guard(app, keyring)
            await office.start()
            try:
                async with store_metrics(metrics, engine, writer):
                    await serve(
                        app,
                        listener,
                        stop,
                        on_listening=lambda: _log.info("listening", host=admin.host, port=admin.port),
                        on_leaving=health.begin_drain,
                        delay_seconds=admin.drain_delay_seconds,
                        on_stopping=health.begin_drain,
                        grace_seconds=admin.shutdown_grace_seconds,
                    )
            finally:
                await office.stop()
                await view.close()

    run_process("aggregator-admin", settings.log, main)


@contextmanager
def _store(settings: Settings, application_name: str, *, read_only: bool = False) -> Iterator[Engine]:
    engine = open_engine(settings.require_database(), application_name=application_name, read_only=read_only)
    try:
        yield engine
    finally:
        engine.dispose()


async def _require_schema(engine: Engine, stop: asyncio.Event) -> None:
    """Wait for the database; raise SchemaMismatch if its schema is not ours."""
    await once_available(lambda: asyncio.to_thread(migrations.check, engine), stop)


async def _require_topic(log: KafkaLog, stop: asyncio.Event) -> None:
    """Wait for the brokers; raise TopicMissing if the topic is not there."""

    async def describe() -> None:
        admin = log.admin()
        try:
            await admin.start()
            await admin.describe()
        finally:
            await admin.stop()

    await once_available(describe, stop)
