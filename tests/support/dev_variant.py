"""`aggregator dev`, made to end at a chosen place.

    python -m tests.support.dev_variant PLACE BATCH [arguments of aggregator dev]

Kills itself when it comes to PLACE (before_store, before_commit) for the BATCH-th time with records in hand.
"""

from __future__ import annotations

import os
import signal
import sys

import cli.worker_process
from cli.main import app
from db.batch import Batch, WhenBusy, WriteResult
from db.event_store import EventStore

_place, _remaining = sys.argv[1], int(sys.argv[2])


class HaltingStore(EventStore):
    def write(self, batch: Batch, when_busy: WhenBusy | None = None) -> WriteResult:
        _pass("before_store", batch)
        result = super().write(batch, when_busy)
        _pass("before_commit", batch)
        return result


def _pass(here: str, batch: Batch) -> None:
    global _remaining
    if here == _place and batch.records:
        _remaining -= 1
        if _remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    cli.worker_process.EventStore = HaltingStore  # type: ignore[attr-defined]
    sys.argv = ["aggregator", "dev", *sys.argv[3:]]
    app()
