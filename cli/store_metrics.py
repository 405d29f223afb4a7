"""What the processes with a database measure of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog

from db.dead_letter_queries import DeadLetterQueries
from db.engine import Engine, pool_connections
from db.errors import StoreError
from stream_worker.backoff import wait_or_stop
from telemetry.instruments import Gauge, Labels
from telemetry.metric_names import DB_POOL_CONNECTIONS, DEAD_LETTERS_PENDING
from telemetry.metrics import Metrics

_QUERY_TIMEOUT_S: Final = 3.0
_MOST_COUNTED: Final = 100_000
"""Above this it makes no difference to anybody, and the count would cost."""
_log = structlog.get_logger("process")


@asynccontextmanager
async def store_metrics(metrics: Metrics, reader: Engine, *others: Engine) -> AsyncIterator[None]:
    """Measure, while the block runs, the connections of the engines and the dead letters that wait.

    These are counted now and then, in the background: reading `/metrics` never reaches the database.

    Args:
        reader: asked for the dead letters.
    """
    connections = metrics.gauge(DB_POOL_CONNECTIONS)
    connections.follow(lambda: _connections([reader, *others]))
    pending = metrics.gauge(DEAD_LETTERS_PENDING)
    stop = asyncio.Event()
    queries = DeadLetterQueries(reader, timeout=_QUERY_TIMEOUT_S)
    counting = asyncio.create_task(
        _keep_counting(pending, queries, metrics.settings.dead_letters_interval_seconds, stop),
        name="count dead letters",
    )
    try:
        yield
    finally:
        stop.set()
        await counting


async def _keep_counting(
    pending: Gauge, queries: DeadLetterQueries, interval_s: float, stop: asyncio.Event
) -> None:
    while not stop.is_set():
        try:
            pending.set(await asyncio.to_thread(queries.count_pending, _MOST_COUNTED))
        except StoreError as error:
            # No figure is better than an old one.
            pending.clear()
            _log.debug("pending dead letters could not be counted", detail=str(error))
        await wait_or_stop(interval_s, stop)


def _connections(engines: Sequence[Engine]) -> dict[Labels, float]:
    total: dict[Labels, float] = {}
    for engine in engines:
        for state, count in pool_connections(engine).items():
            total[(state,)] = total.get((state,), 0) + count
    return total
