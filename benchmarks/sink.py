"""How fast records get from Kafka into Postgres: our worker, the limit of its tables, and other programs.

Usage: python -m benchmarks.sink [--records N] [--rounds N] [--only NAME ...] [--write]

What another program stored is compared with what was sent, row by row; one that stored anything else is left
out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from benchmarks.copy_limit import CopyLimit
from benchmarks.machine import describe
from benchmarks.peers import kafka_connect, mq_bridge, redpanda_connect
from benchmarks.result import Column, Table, arguments, chosen, finish
from benchmarks.rounds import Contestant, Figures, run_rounds
from benchmarks.servers import broker, database, work_directory
from benchmarks.sink_stage import LAST, LOG, SinkStage, settings_of
from benchmarks.workload import workload
from tests.support.processes import Process, aggregator

COLUMNS: Final = (
    Column("records_per_second", "records/s", more_is_better=True),
    Column("cpu_us_per_record", "CPU µs/record", "{:,.1f}"),
    Column("peak_rss_mb", "peak MB"),
    Column("postgres_cpu_us_per_record", "Postgres CPU µs/record", "{:,.1f}"),
    Column("total_cpu_us_per_record", "both", "{:,.1f}"),
    Column("wal_bytes_per_record", "WAL B/record"),
)
TABLES: Final = (Table("Kafka to Postgres", COLUMNS),)
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
    told = arguments("sink", __doc__, records=(300_000, "records in the log, copies included"))
    with work_directory() as directory, broker(directory) as kafka, database() as postgres:
        machine = describe()
        stage = SinkStage(kafka, postgres, workload(told.records, last=LAST), directory)
        contestants: list[Contestant] = [
            Worker(stage),
            CopyLimit(stage),
            mq_bridge.UpsertSink(stage),
            mq_bridge.InsertSink(stage),
            kafka_connect.DebeziumSink(stage),
            redpanda_connect.InsertSink(stage),
        ]
        outcomes = run_rounds(chosen(contestants, told.only), told.rounds)
    finish("sink", machine, settings_of(stage, told.rounds), TABLES, outcomes, OURS, keep=told.write)


if __name__ == "__main__":
    main()
