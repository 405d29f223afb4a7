"""How fast records get from Kafka into Postgres: our worker, the limit of its tables, and other programs.

Usage: python -m benchmarks.sink [--records N] [--rounds N] [--only NAME ...] [--write]

What another program stored is compared with what was sent, row by row; one that stored anything else is left
out.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Final

from benchmarks.copy_limit import CopyLimit
from benchmarks.machine import describe
from benchmarks.peers import mq_bridge
from benchmarks.result import RESULTS, Column, show, write
from benchmarks.rounds import Contestant, Figures, run_rounds
from benchmarks.servers import broker, database, work_directory
from benchmarks.sink_stage import LAST, LOG, SinkStage, settings_of
from benchmarks.workload import workload
from tests.support.processes import Process, aggregator

COLUMNS: Final = (
    Column("records_per_second", "records/s"),
    Column("cpu_us_per_record", "CPU µs/record", "{:,.1f}"),
    Column("peak_rss_mb", "peak MB"),
    Column("postgres_cpu_seconds", "Postgres CPU s", "{:,.2f}"),
    Column("wal_bytes_per_record", "WAL B/record"),
)
OURS: Final = "aggregator worker"


class Worker:
    """Our worker as it is deployed, one process, with its default settings."""

    name = OURS
    schema = None
    settings: Final = {"settings": "defaults", "processes": "1"}

    def __init__(self, stage: SinkStage) -> None:
        self._stage = stage

    def prepare(self) -> None:
        """Nothing: it is here."""

    def measure(self) -> Figures:
        return self._stage.measure(self)

    @contextlib.contextmanager
    def running(self, url: str, group: str) -> Iterator[Process]:
        environment = {
            "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS": self._stage.broker.bootstrap,
            "AGGREGATOR_KAFKA__TOPIC": LOG,
            "AGGREGATOR_KAFKA__GROUP_ID": group,
            "AGGREGATOR_DATABASE__URL": url,
            "AGGREGATOR_WORKER__PORT": "0",
        }
        log = self._stage.directory / f"worker-{group}.log"
        with aggregator("worker", "worker", log=log, environment=environment) as process:
            yield process
            process.terminate()


def main() -> None:
    arguments = _arguments()
    with work_directory() as directory, broker(directory) as kafka, database() as postgres:
        machine = describe()
        stage = SinkStage(kafka, postgres, workload(arguments.records, last=LAST), directory)
        contestants: list[Contestant] = [
            Worker(stage),
            CopyLimit(stage),
            mq_bridge.UpsertSink(stage),
            mq_bridge.InsertSink(stage),
        ]
        contestants = [c for c in contestants if not arguments.only or c.name in arguments.only]
        outcomes = run_rounds(contestants, arguments.rounds)
        settings = {**settings_of(stage), "rounds": arguments.rounds}
    show("Kafka to Postgres, medians", outcomes, COLUMNS, OURS)
    document = {
        "benchmark": "sink",
        **machine,
        "settings": settings,
        "columns": [column.as_json() for column in COLUMNS],
        "reference": OURS,
        "outcomes": [outcome.as_json() for outcome in outcomes],
    }
    write("sink", document, RESULTS if arguments.write else None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink", description=__doc__)
    parser.add_argument("--records", type=int, default=300_000, help="records in the log, copies included")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these contestants")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}/sink.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
