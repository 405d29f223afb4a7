"""What is lost, or counted twice, when a program is killed (SIGKILL) at work and started again.

Usage: python -m benchmarks.killed [--rounds N] [--kills N] [--only NAME ...] [--write]

Sinks are killed while they move a log into a table, and started again with the same consumer group; what is
in the table at the end is compared with the log. Whoever takes requests is killed under load; what was
acknowledged is compared with what the log, or the file, holds afterwards. A group notices the kill of a sink
only once its session has ended, which is why this takes minutes.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg

from benchmarks.embedded import Dev, Embedded, WithSqlite
from benchmarks.gateway import OurGateway
from benchmarks.gateway_stage import Gateway, GatewayStage
from benchmarks.http_client import send_all
from benchmarks.machine import describe
from benchmarks.peers import kafka_connect, mq_bridge, redpanda_connect
from benchmarks.result import Column, Table, arguments, chosen, finish
from benchmarks.rounds import Contestant, Figures, LeftOut, run_rounds
from benchmarks.servers import broker, database, one, require_running, work_directory
from benchmarks.sink import Worker
from benchmarks.sink_stage import LAST, SinkStage
from benchmarks.workload import Event, workload
from tests.support.processes import Process

RECORDS: Final = 100_000
REQUESTS: Final = 20_000
CONNECTIONS: Final = 32
KILLED_AFTER_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.02
_STUCK_SECONDS: Final = 90.0
"""Twice a consumer's session: so long after a kill its records may wait for the group to notice."""

SINKS: Final = Table(
    "Log to table, killed at work",
    (
        Column("sink_kills", "kills"),
        Column("sink_lost", "events lost"),
        Column("sink_rows_twice", "rows twice"),
        Column("sink_miscounted", "records miscounted"),
    ),
)
GATEWAYS: Final = Table(
    "Request to log, killed under load",
    (
        Column("gateway_kills", "kills"),
        Column("gateway_acknowledged", "acknowledged"),
        Column("gateway_lost", "of these lost"),
    ),
)
SERVICES: Final = Table(
    "Request to file, killed under load",
    (
        Column("service_kills", "kills"),
        Column("service_acknowledged", "acknowledged"),
        Column("service_lost", "of these lost"),
        Column("service_rows_twice", "rows twice"),
    ),
)


class Killed:
    """A contestant of another benchmark, killed so many times in a round."""

    def __init__(self, inner: Contestant, kills: int) -> None:
        self._inner = inner
        self._kills = kills
        self.name = inner.name

    @property
    def settings(self) -> Mapping[str, str]:
        return self._inner.settings

    def prepare(self) -> None:
        self._inner.prepare()

    def measure(self) -> Figures:
        raise NotImplementedError


class KilledSink(Killed):
    """One consumer group and one database for all of its lives."""

    def __init__(self, sink: Any, stage: SinkStage, kills: int) -> None:
        super().__init__(sink, kills)
        self._sink = sink
        self._stage = stage

    def measure(self) -> Figures:
        group = f"killed-{time.monotonic_ns()}"
        distinct = self._stage.load.distinct
        ours = self._sink.schema is None
        with (
            self._stage.database.fresh(schema=self._sink.schema) as url,
            psycopg.connect(url, autocommit=True) as connection,
        ):
            for number in range(1, self._kills + 1):
                with self._sink.running(url, group) as process:
                    _rows(connection, process, distinct * number // (self._kills + 1))
                    process.kill()
            with self._sink.running(url, group) as process:
                _rows(connection, process, distinct)
            rows, found = one(connection, "SELECT count(*), count(DISTINCT (topic, event_id)) FROM events")
            figures = {
                "sink_kills": float(self._kills),
                "sink_lost": float(distinct - found),
                "sink_rows_twice": float(rows - found),
            }
            if ours:
                (received,) = one(connection, "SELECT sum(received) FROM verdict_counts")
                figures["sink_miscounted"] = abs(float(received) - len(self._stage.load.events))
        return figures


class KilledGateway(Killed):
    """A new log each time; what was acknowledged has to be in it."""

    def __init__(self, gateway: Gateway, events: Sequence[Event], kills: int) -> None:
        super().__init__(gateway, kills)
        self._gateway = gateway
        self._events = events

    def measure(self) -> Figures:
        acknowledged = lost = 0
        for _ in range(self._kills):
            with self._gateway.stage.topic() as topic:
                with self._gateway.running(topic, 1) as running:
                    port = urlsplit(running.url).port
                    assert port is not None
                    taken = _acknowledged(running.process, port, self._events)
                held = frozenset(self._gateway.stage.broker.values(topic))
            acknowledged += len(taken)
            lost += sum(event.value not in held for event in taken)
        return {
            "gateway_kills": float(self._kills),
            "gateway_acknowledged": float(acknowledged),
            "gateway_lost": float(lost),
        }


class KilledService(Killed):
    """One file for two lives; what was acknowledged has to be in it once the second has begun."""

    def __init__(self, service: Embedded, events: Sequence[Event], kills: int) -> None:
        super().__init__(service, kills)
        self._service = service
        self._events = events

    def measure(self) -> Figures:
        acknowledged = lost = twice = 0
        for number in range(self._kills):
            place = self._service.directory / f"killed-{type(self._service).__name__}-{number}"
            place.mkdir()
            with self._service.running(place) as (process, port, _):
                taken = _acknowledged(process, port, self._events)
            with self._service.running(place) as (_, _, where):
                rows = _file_rows(where, {(event.topic, event.event_id) for event in taken})
            held = set(rows)
            acknowledged += len(taken)
            lost += sum((event.topic, event.event_id) not in held for event in taken)
            twice += len(rows) - len(held)
        return {
            "service_kills": float(self._kills),
            "service_acknowledged": float(acknowledged),
            "service_lost": float(lost),
            "service_rows_twice": float(twice),
        }


class AnswersAtOnce(WithSqlite):
    """The usual first version: the answer is given when the event is in the queue."""

    name = "queue + SQLite, answered at once"
    kind = "sqlite-at-once"
    settings: Mapping[str, str] = {**WithSqlite.settings, "answers": "before anything is written"}


def _rows(connection: psycopg.Connection[Any], process: Process, wanted: int) -> None:
    """Wait until there are so many rows, or no more come. Raises LeftOut if the process ends by itself."""
    rows, changed = -1, time.monotonic()
    while True:
        (found,) = one(connection, "SELECT count(*) FROM events")
        if found >= wanted:
            return
        require_running(process)
        if found != rows:
            rows, changed = found, time.monotonic()
        elif time.monotonic() - changed > _STUCK_SECONDS:
            return
        time.sleep(_LOOK_SECONDS)


def _acknowledged(process: Process, port: int, events: Sequence[Event]) -> list[Event]:
    """Send events until the process is killed, a moment after the first; those answered with 2xx."""
    killing = threading.Timer(KILLED_AFTER_SECONDS, process.kill)
    killing.start()
    sent = send_all(port, [event.value for event in events], CONNECTIONS)
    killing.join()
    taken = [event for event, status in zip(events, sent.statuses, strict=True) if 200 <= status < 300]
    if not taken or len(taken) == len(events):
        raise LeftOut(f"It was killed with {len(taken):,} of {len(events):,} events acknowledged.")
    return taken


def _file_rows(file: Path, wanted: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Identities in a file, once all that are wanted are there or no more come."""
    rows: list[tuple[str, str]] = []
    changed = time.monotonic()
    while time.monotonic() - changed < 10 and not wanted <= set(rows):
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT topic, event_id FROM events").fetchall()
        if len(found) != len(rows):
            rows, changed = found, time.monotonic()
        time.sleep(_LOOK_SECONDS)
    return rows


def _distinct(events: Sequence[Event]) -> list[Event]:
    return list({(event.topic, event.event_id): event for event in events}.values())


@contextlib.contextmanager
def _contestants(kills: int) -> Iterator[tuple[list[Contestant], Mapping[str, Any]]]:
    with work_directory() as directory, broker(directory) as kafka, database() as postgres:
        load = workload(RECORDS, last=LAST)
        sinks = SinkStage(kafka, postgres, load, directory)
        gateways = GatewayStage(kafka, load, directory, 0)
        events = _distinct(load.events)[:REQUESTS]
        yield (
            [
                *(
                    KilledSink(sink, sinks, kills)
                    for sink in (
                        Worker(sinks),
                        mq_bridge.UpsertSink(sinks),
                        mq_bridge.InsertSink(sinks),
                        kafka_connect.DebeziumSink(sinks),
                        redpanda_connect.InsertSink(sinks),
                    )
                ),
                *(
                    KilledGateway(gateway, events, kills)
                    for gateway in (
                        OurGateway(gateways),
                        mq_bridge.HttpGateway(gateways),
                        redpanda_connect.HttpGateway(gateways),
                    )
                ),
                *(
                    KilledService(service, events, kills)
                    for service in (
                        Dev(directory, events),
                        WithSqlite(directory, events),
                        AnswersAtOnce(directory, events),
                    )
                ),
            ],
            {"broker": kafka.settings, "database": postgres.settings},
        )


def main() -> None:
    told = arguments("killed", __doc__, kills=(3, "of each contestant in each round"))
    machine = describe()
    with _contestants(told.kills) as (contestants, servers):
        outcomes = run_rounds(chosen(contestants, told.only), told.rounds)
    settings = {
        "rounds": told.rounds,
        "records": RECORDS,
        "requests": f"at most {REQUESTS:,}, killed {KILLED_AFTER_SECONDS:g} s after the first",
        "connections": CONNECTIONS,
        **servers,
    }
    finish("killed", machine, settings, [SINKS, GATEWAYS, SERVICES], outcomes, Worker.name, keep=told.write)


if __name__ == "__main__":
    main()
