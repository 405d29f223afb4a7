"""A worker that kills itself with SIGKILL between the database commit and the offset commit.

Run as `python -m tests.support.dying_worker N`: it dies at its N-th batch. Otherwise it is the worker role,
configured by the same environment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from broker.kafka import KafkaLog
from cli.settings import load_settings
from cli.worker_process import WorkerProcess
from db.engine import open_engine


def main() -> None:
    settings = load_settings()
    remaining = int(sys.argv[1])

    async def die() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = open_engine(settings.require_database(), application_name="dying worker")
    log = KafkaLog(settings.require_kafka())
    worker = WorkerProcess(log, engine, settings.worker, settings.retention, before_commit=die)
    asyncio.run(worker.work_until(asyncio.Event()))


if __name__ == "__main__":
    main()
