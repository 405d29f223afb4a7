"""How far more workers carry: the same records, emptied into one Postgres by one worker, by two, by four.

Usage: python -m benchmarks.workers [--records N] [--rounds N] [--workers N ...] [--write]

Broker, database and workers share this machine, so the table says what each of them took of it, and what was
taken by others meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import Producer

from benchmarks.machine import describe
from benchmarks.resources import used
from benchmarks.result import RESULTS, Column, show, write
from benchmarks.rounds import Contestant, Figures, LeftOut, run_rounds, say
from benchmarks.servers import Broker, Database, broker, database, one, require_running, work_directory
from benchmarks.workload import Workload, workload
from tests.support.processes import Process, aggregator

PARTITIONS: Final = 8
"""Divisible by each number of workers, so that none has more to read than another."""
COLUMNS: Final = (
    Column("records_per_second", "records/s"),
    Column("worker_us_per_record", "worker CPU µs/record", "{:,.1f}"),
    Column("postgres_us_per_record", "Postgres CPU µs/record", "{:,.1f}"),
    Column("kafka_us_per_record", "Kafka CPU µs/record", "{:,.1f}"),
    Column("cores_ours", "cores, these three", "{:,.2f}"),
    Column("cores_others", "cores, others", "{:,.2f}"),
    Column("wal_bytes_per_record", "WAL B/record"),
    Column("disk_bytes_per_event", "disk B/event"),
)
_LOOK_SECONDS: Final = 0.025
_JOIN_SECONDS: Final = 90.0
_STUCK_SECONDS: Final = 60.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_IDLE_FIELDS: Final = (3, 4)
"""In the first line of /proc/stat: idle, and waiting for a disk."""
_COUNTED_FIELDS: Final = 8
"""After these come times of guests, which are counted in others already."""

_SHARES: Final = "SELECT owner, count(*) FROM partition_progress GROUP BY owner"
_VERDICTS: Final = """SELECT coalesce(sum(received), 0)::bigint, coalesce(sum(stored), 0)::bigint,
    coalesce(sum(duplicate), 0)::bigint FROM verdict_counts"""
_ON_DISK: Final = """SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
    WHERE relkind = 'r' AND (relname = 'event_keys' OR left(relname, 7) = 'events_')"""

_KEY_INDEX: Final = "SELECT pg_relation_size('event_keys_pkey')"


class WorkersStage:
    """The broker, the database and the records; each round has a topic, a group and a database of its own."""

    def __init__(self, broker: Broker, database: Database, load: Workload, directory: Path) -> None:
        self.broker = broker
        self.database = database
        self.load = load
        self.directory = directory
        self._rounds = itertools.count(1)

    def measure(self, workers: int) -> Figures:
        """One round with so many workers. Raises LeftOut if any record got another verdict than it should."""
        topic = f"events-{next(self._rounds)}"
        self.broker.create_topic(topic, PARTITIONS)
        try:
            with (
                self.database.fresh() as url,
                _written(self.broker, topic, self.load) as producer,
                self._working(workers, topic, url) as processes,
            ):
                return self._timed(producer, processes, url)
        finally:
            self.broker.delete_topic(topic)

    @contextlib.contextmanager
    def _working(self, workers: int, topic: str, url: str) -> Iterator[list[Process]]:
        """Workers with their default settings, each of which holds its share of the partitions."""
        environment = {
            "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS": self.broker.bootstrap,
            "AGGREGATOR_KAFKA__TOPIC": topic,
            "AGGREGATOR_KAFKA__GROUP_ID": topic,
            "AGGREGATOR_DATABASE__URL": url,
            "AGGREGATOR_WORKER__PORT": "0",
        }
        with contextlib.ExitStack() as stack:
            processes = []
            for number in range(workers):
                log = self.directory / f"{topic}-worker-{number}.log"
                role = aggregator(f"worker {number}", "worker", log=log, environment=environment)
                processes.append(stack.enter_context(role))
            self._wait_for_shares(processes, url)
            yield processes
            for process in processes:
                process.terminate()

    def _wait_for_shares(self, processes: list[Process], url: str) -> None:
        share = [PARTITIONS // len(processes)] * len(processes)
        deadline = time.monotonic() + _JOIN_SECONDS
        with psycopg.connect(url, autocommit=True) as connection:
            while [held for _, held in connection.execute(_SHARES.encode()).fetchall()] != share:
                require_running(*processes)
                if time.monotonic() > deadline:
                    raise LeftOut(f"The workers did not share the partitions within {_JOIN_SECONDS:g} s.")
                time.sleep(_LOOK_SECONDS)

    def _timed(self, producer: Producer, processes: list[Process], url: str) -> dict[str, float]:
        """From the moment at which the records become visible to the last verdict."""
        records = len(self.load.events)
        with psycopg.connect(url, autocommit=True) as connection:
            before, machine, wal = self._cpu(processes), _machine_seconds(), self.database.wal_bytes()
            began = time.monotonic()
            producer.commit_transaction(60)
            self._wait_for_verdicts(connection, processes)
            seconds = time.monotonic() - began
            after, machine_after = self._cpu(processes), _machine_seconds()
            wal = self.database.wal_bytes() - wal
            (on_disk,) = one(connection, _ON_DISK)
            (key_index,) = one(connection, _KEY_INDEX)
        cpu = {role: after[role] - before[role] for role in before}
        return {
            "records_per_second": records / seconds,
            "seconds": seconds,
            **{f"{role}_us_per_record": value / records * 1e6 for role, value in cpu.items()},
            "cores_ours": sum(cpu.values()) / seconds,
            "cores_others": max(0.0, machine_after - machine - sum(cpu.values())) / seconds,
            "wal_bytes_per_record": wal / records,
            "disk_bytes_per_event": on_disk / self.load.distinct,
            "key_index_bytes_per_event": key_index / self.load.distinct,
        }

    def _wait_for_verdicts(self, connection: psycopg.Connection[Any], processes: list[Process]) -> None:
        records, distinct = len(self.load.events), self.load.distinct
        seen, changed = 0, time.monotonic()
        while True:
            received, stored, duplicates = one(connection, _VERDICTS)
            if received >= records:
                break
            if received != seen:
                seen, changed = received, time.monotonic()
            elif time.monotonic() - changed > _STUCK_SECONDS:
                told = "\n".join(process.output()[-600:] for process in processes)
                raise LeftOut(f"{received:,} of {records:,} have a verdict, and no more get one:\n{told}")
            require_running(*processes)
            time.sleep(_LOOK_SECONDS)
        if (received, stored, duplicates) != (records, distinct, records - distinct):
            raise LeftOut(
                f"Counters are wrong: {received} received, {stored} stored, {duplicates} duplicates."
            )

    def _cpu(self, processes: list[Process]) -> dict[str, float]:
        return {
            "worker": sum(used(process.pid).cpu_seconds for process in processes),
            "postgres": used(self.database.pid).cpu_seconds,
            "kafka": used(self.broker.pid).cpu_seconds,
        }


class Crew:
    """So many workers, as one contestant."""

    def __init__(self, stage: WorkersStage, workers: int) -> None:
        self._stage = stage
        self._workers = workers
        self.name = "1 worker" if workers == 1 else f"{workers} workers"
        self.settings: Mapping[str, str] = {"settings": "defaults", "processes": str(workers)}

    def prepare(self) -> None:
        """Nothing: it is here."""

    def measure(self) -> Figures:
        return self._stage.measure(self._workers)


@contextlib.contextmanager
def _written(broker: Broker, topic: str, load: Workload) -> Iterator[Producer]:
    """A producer that has written all records, in a transaction that is to be committed.

    Nobody sees any of them before, so all workers can be there and waiting when the first becomes visible.
    """
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "log_level": 0,
            "transactional.id": topic,
            "transaction.timeout.ms": 600_000,
            "partitioner": "consistent",
            "compression.type": "snappy",
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for event in load.events:
        while True:
            try:
                producer.produce(topic, event.value, event.key)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(120):
        raise LeftOut("The records could not be written to the log.")
    yield producer


def _machine_seconds() -> float:
    """CPU seconds that all cores of this machine have spent on anything."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:][:_COUNTED_FIELDS]]
    return sum(value for number, value in enumerate(fields) if number not in _IDLE_FIELDS) / _TICKS


def main() -> None:
    arguments = _arguments()
    with work_directory() as directory, broker(directory) as kafka, database() as postgres:
        machine = describe()
        load = workload(arguments.records)
        stage = WorkersStage(kafka, postgres, load, directory)
        contestants: list[Contestant] = [Crew(stage, number) for number in arguments.workers]
        # Page caches, Java's compiler, and the database's first files.
        say("warming up ...")
        stage.measure(1)
        outcomes = run_rounds(contestants, arguments.rounds)
    reference = contestants[0].name
    show("Kafka to one Postgres, all on this machine, medians", outcomes, COLUMNS, reference)
    document = {
        "benchmark": "workers",
        **machine,
        "settings": {
            "records": len(load.events),
            "distinct": load.distinct,
            "bytes_per_event": round(load.bytes / len(load.events)),
            "rounds": arguments.rounds,
            "broker": {**kafka.settings, "partitions": str(PARTITIONS)},
            "database": postgres.settings,
        },
        "columns": [column.as_json() for column in COLUMNS],
        "reference": reference,
        "outcomes": [outcome.as_json() for outcome in outcomes],
    }
    write("workers", document, RESULTS if arguments.write else None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--records", type=int, default=300_000, help="records in the log, copies included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2, 4], help="divisors of the partitions"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}/workers.json")
    arguments = parser.parse_args()
    if any(number < 1 or PARTITIONS % number for number in arguments.workers):
        parser.error(f"--workers have to divide {PARTITIONS}, the number of partitions")
    return arguments


if __name__ == "__main__":
    main()
