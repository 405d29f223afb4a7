"""How fast events get from HTTP into a file or table: `aggregator dev`, and what one writes first.

Usage: python -m benchmarks.embedded [--rounds N] [--only NAME ...] [--write]

All of them answer once an event is durable. Each event is sent exactly once, a fifth of them being copies,
and what is stored is compared with what was sent. `aggregator dev` answers once the event is in its log, and
stores it soon after: both times are taken.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg

from benchmarks.gateway_stage import START_SECONDS, wait_answering
from benchmarks.http_client import send_all
from benchmarks.machine import describe
from benchmarks.resources import used
from benchmarks.result import Column, Table, arguments, chosen, finish, several
from benchmarks.rounds import Contestant, Figures, LeftOut, run_rounds
from benchmarks.servers import Database, database, one, work_directory
from benchmarks.workload import Event, workload
from tests.support.processes import Process, aggregator, free_port, wait_ready

CONNECTIONS: Final = 32
EVENTS_OF: Final = {1: 10_000, 100: 100_000}
FEWER_OF: Final = {1: 4_000, 100: 8_000}
"""For the predecessors, which would need minutes for as many."""
OURS: Final = "aggregator dev"
_DRAIN_SECONDS: Final = 60.0


class Embedded:
    """A contestant: how it is started, and how many events it holds."""

    name: str = ""
    events_of: Mapping[int, int] = EVENTS_OF
    settings: Mapping[str, str] = {}

    def __init__(self, directory: Path, events: Sequence[Event]) -> None:
        self.directory = directory
        self._events = events
        self._numbers = itertools.count(1)

    def prepare(self) -> None:
        """Nothing: it is here."""

    def measure(self) -> Figures:
        figures: dict[str, float] = {}
        for size, count in self.events_of.items():
            place = self.directory / f"{type(self).__name__}-{next(self._numbers)}"
            place.mkdir()
            events = self._events[:count]
            bodies = [_body(events[start : start + size]) for start in range(0, count, size)]
            with self.running(place) as (process, port, where):
                before = used(process.pid)
                sent = send_all(port, bodies, CONNECTIONS)
                if sent.refused:
                    raise LeftOut(f"{sent.refused} of {len(bodies)} requests were refused.")
                drained = self.drained(port, count) - min(sent.due)
                after = used(process.pid)
                stored = self.stored(where)
            distinct = len({(event.topic, event.event_id) for event in events})
            if stored != distinct:
                raise LeftOut(f"{stored:,} events are stored in place of {distinct:,}.")
            shutil.rmtree(place)
            figures |= {
                f"stored_per_second_{size}": count / max(drained, sent.seconds),
                f"acknowledged_per_second_{size}": count / sent.seconds,
                f"cpu_us_per_event_{size}": (after.cpu_seconds - before.cpu_seconds) / count * 1e6,
                f"peak_rss_mb_{size}": after.peak_rss_mb,
            }
        return figures

    def running(self, place: Path) -> contextlib.AbstractContextManager[tuple[Process, int, Any]]:
        """The process, its port, and where its events are."""
        raise NotImplementedError

    def drained(self, port: int, count: int) -> float:
        """When the last event was stored; the answer means that it is, unless said otherwise."""
        return 0.0

    def stored(self, where: Any) -> int:
        """How many events there are now."""
        with contextlib.closing(sqlite3.connect(where)) as connection:
            return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])


class Dev(Embedded):
    """Our embedded mode with its default settings."""

    name = OURS
    settings: Mapping[str, str] = {"settings": "defaults", "synchronous": "FULL"}

    @contextlib.contextmanager
    def running(self, place: Path) -> Iterator[tuple[Process, int, Any]]:
        port = free_port()
        command = ["dev", "--port", str(port), "--data-dir", str(place / "data")]
        with aggregator("dev", *command, log=place / "dev.log") as process:
            wait_ready(process, f"http://127.0.0.1:{port}", START_SECONDS)
            httpx.get(f"http://127.0.0.1:{port}/stats", timeout=30).raise_for_status()
            (store,) = [file for file in (place / "data").glob("*.db") if file.name != "log.db"]
            yield process, port, store
            process.terminate()

    def drained(self, port: int, count: int) -> float:
        deadline = time.monotonic() + _DRAIN_SECONDS
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while True:
                stats = client.get("/stats").raise_for_status().json()
                now = time.monotonic()
                if stats["received"] == count and stats["queue_depth"] == 0:
                    return now
                if now > deadline:
                    raise LeftOut(f"{stats['received']:,} of {count:,} events have a verdict after a minute.")
                time.sleep(0.05)


class WithSqlite(Embedded):
    """FastAPI, asyncio.Queue, one SQLite INSERT and commit per event."""

    name = "queue + SQLite, row by row"
    kind = "sqlite"
    events_of: Mapping[int, int] = FEWER_OF
    settings: Mapping[str, str] = {"synchronous": "FULL", "journal": "WAL", "answers": "after the commit"}

    @contextlib.contextmanager
    def running(self, place: Path) -> Iterator[tuple[Process, int, Any]]:
        with _predecessor(self.kind, str(place / "events.db"), place) as (process, port):
            yield process, port, place / "events.db"


class WithPostgres(Embedded):
    """FastAPI, one awaited Postgres INSERT per event."""

    name = "awaited Postgres, row by row"
    events_of: Mapping[int, int] = FEWER_OF
    settings: Mapping[str, str] = {"connections": "32", "fsync": "on", "answers": "after the commit"}

    def __init__(self, directory: Path, events: Sequence[Event], server: Database) -> None:
        super().__init__(directory, events)
        self._server = server

    @contextlib.contextmanager
    def running(self, place: Path) -> Iterator[tuple[Process, int, Any]]:
        with self._server.fresh(schema="SELECT 1") as url, _predecessor("postgres", url, place) as running:
            yield *running, url

    def stored(self, where: Any) -> int:
        with psycopg.connect(where) as connection:
            return int(one(connection, "SELECT count(*) FROM events")[0])


@contextlib.contextmanager
def _predecessor(kind: str, where: str, place: Path) -> Iterator[tuple[Process, int]]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.predecessors", kind, str(port), where]
    process = Process(kind, command, place / "server.log", {})
    try:
        wait_answering(process, port)
        yield process, port
    finally:
        process.close()


def _body(events: Sequence[Event]) -> bytes:
    if len(events) == 1:
        return events[0].value
    return b"[%b]" % b",".join(event.value for event in events)


def main() -> None:
    told = arguments("embedded", __doc__)
    with work_directory() as directory, database() as postgres:
        machine = describe()
        events = workload(max(EVENTS_OF.values())).events
        contestants: list[Contestant] = [
            Dev(directory, events),
            WithSqlite(directory, events),
            WithPostgres(directory, events, postgres),
        ]
        outcomes = run_rounds(chosen(contestants, told.only), told.rounds)
    settings = {
        "rounds": told.rounds,
        "connections": CONNECTIONS,
        "events": {OURS: EVENTS_OF, "others": FEWER_OF},
        "database": postgres.settings,
    }
    tables = [Table(several(size, "request"), _columns(size)) for size in EVENTS_OF]
    finish("embedded", machine, settings, tables, outcomes, OURS, keep=told.write)


def _columns(size: int) -> list[Column]:
    return [
        Column(f"stored_per_second_{size}", "stored/s", more_is_better=True),
        Column(f"acknowledged_per_second_{size}", "acknowledged/s", more_is_better=True),
        Column(f"cpu_us_per_event_{size}", "CPU µs/event", "{:,.1f}"),
        Column(f"peak_rss_mb_{size}", "peak MB"),
    ]


if __name__ == "__main__":
    main()
