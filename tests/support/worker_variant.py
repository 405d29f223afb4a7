"""The worker role, made to end or freeze at a chosen place, or built wrong.

    python -m tests.support.worker_variant BUILD [PLACE BATCH SIGNAL]

Sends itself SIGNAL when it comes to PLACE (before_store, before_counts, before_commit) for the BATCH-th time
with records in hand. Configured by the environment, as the role is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from broker.kafka import KafkaLog
from cli.process import run_process
from cli.settings import load_settings
from db.engine import open_engine
from stream_worker.service import new_worker_id, run_worker
from tests.support.broken_builds import BUILDS, Halt


def main() -> None:
    build = BUILDS[sys.argv[1]]
    settings = load_settings()

    async def run(stop: asyncio.Event) -> None:
        halt = _halt(*sys.argv[2:])
        worker_id = new_worker_id()
        log = KafkaLog(settings.require_kafka())
        engine = open_engine(settings.require_database(), application_name="worker variant")
        store = build.store(engine, log.topic, owner=worker_id)
        store.halt = halt

        async def before_commit() -> None:
            halt("before_commit")

        worker = build.worker(log, store, settings.worker, before_commit=before_commit)

        async def stop_worker() -> None:
            await stop.wait()
            worker.stop()

        stopper = asyncio.create_task(stop_worker(), name="stop worker")
        try:
            await run_worker(worker, store, worker_id, settings.worker)
        finally:
            stopper.cancel()
            engine.dispose()

    run_process("worker-variant", settings.log, run)


def _halt(place: str = "", batch: str = "0", number: str = "SIGKILL") -> Halt:
    remaining = int(batch)

    def halt(here: str) -> None:
        nonlocal remaining
        if here == place:
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), signal.Signals[number])

    return halt


if __name__ == "__main__":
    main()
