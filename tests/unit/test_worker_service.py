"""A worker and what runs beside it."""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import pytest

from db.errors import SchemaMismatch
from stream_worker.service import run_worker
from stream_worker.settings import WorkerSettings


class Worker:
    """One that ends with an error, and is asked for its lag until then."""

    async def run(self) -> None:
        raise SchemaMismatch("migrate first")

    async def keep_lag_known(self) -> None:
        pass


class Store:
    """Knows which workers there are."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def heartbeat(self, worker_id: str, started_at: dt.datetime) -> None:
        pass

    def forget_worker(self, worker_id: str) -> None:
        self.forgotten.append(worker_id)


async def test_what_ends_a_worker_is_raised_as_it_is_and_the_worker_forgotten() -> None:
    store = Store()
    with pytest.raises(SchemaMismatch, match="migrate first"):
        await run_worker(cast(Any, Worker()), cast(Any, store), "w1", WorkerSettings())
    assert store.forgotten == ["w1"]
