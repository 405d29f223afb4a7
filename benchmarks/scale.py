"""What grows with the number of stored events: sink throughput, disk, and the time of every admin route.

Usage: python -m benchmarks.scale [--sizes N ...] [--records N] [--write]

One database is filled to each size in turn, by the server itself, with rows of the real shape and random
keys. At each size a real worker empties the same number of fresh records out of Kafka, and the admin API is
asked. At the last size a day of events is dropped while a worker is storing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import psycopg

from benchmarks.machine import describe
from benchmarks.result import RESULTS, table, write
from benchmarks.servers import Broker, Database, broker, database, one, work_directory
from benchmarks.workload import Event, Workload, workload
from events.event import identity
from tests.support.deployment import Deployment

DAYS: Final = 10
TOPIC: Final = "grown"
SAMPLED: Final = 125
"""Rows of each filling whose keys are real, so that they can be asked for."""
ASKED: Final = 500
"""Requests of each route, or as many as fit into `ASKING_SECONDS` for all, but at least `ASKED_AT_LEAST`."""
ASKED_AT_LEAST: Final = 20
ASKING_SECONDS: Final = 120.0
_IDLE_TOPIC: Final = "nothing-comes"
_FILL_AT_ONCE: Final = 250_000
_LOOK_SECONDS: Final = 0.05
_STUCK_SECONDS: Final = 120.0

# The payload is about as large as that of a real event, and as hard to compress.
_ROWS: Final = """
    SELECT n AS seq,
        %(begin)s::timestamptz + (n::float8 / %(most)s) * interval '1 day' * %(days)s AS stored_at,
        format('{"n": %%s, "text": "%%s%%s%%s%%s%%s%%s"}', n, md5(n::text), md5('a' || n), md5('b' || n),
            md5('c' || n), md5('d' || n), md5('e' || n)) AS payload
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
_FILL: Final = f"""
WITH rows AS MATERIALIZED ({_ROWS}), keys AS (
    INSERT INTO event_keys (key, content_hash, seq, stored_at)
    SELECT md5('key' || seq)::uuid, seq, seq, stored_at FROM rows
)
INSERT INTO events (seq, stored_at, occurred_at, log_offset, log_partition, log_incarnation, topic, event_id,
    source, payload)
SELECT seq, stored_at, stored_at, seq, 0, 1, '{TOPIC}.' || seq %% 8, 'filled-' || seq, 'filler', payload::json
FROM rows
"""
_SET_KEY: Final = "UPDATE event_keys SET key = %s WHERE key = md5('key' || %s)::uuid"
_RECEIVED: Final = "SELECT coalesce(sum(received), 0)::bigint FROM verdict_counts"
_DISK: Final = """SELECT sum(pg_table_size(c.oid))::bigint, sum(pg_indexes_size(c.oid))::bigint
    FROM pg_class c WHERE relkind = 'r' AND (relname = 'event_keys' OR left(relname, 7) = 'events_')"""


class Growing:
    """A database that gets larger, with a broker, and a topic for each measurement."""

    def __init__(self, kafka: Broker, postgres: Database, url: str, directory: Path, most: int) -> None:
        self._kafka = kafka
        self._postgres = postgres
        self._url = url
        self._directory = directory
        self._most = most
        self._filled = 0
        self._turn = 0
        self._samples: list[int] = []
        kafka.create_topic(_IDLE_TOPIC)
        self._begin = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0) - (
            dt.timedelta(days=DAYS)
        )
        with self._session() as session:
            for number in range(DAYS):
                day = self._begin + dt.timedelta(days=number)
                bounds = (
                    f"FROM ('{day:%Y-%m-%d} 00:00+00') TO ('{day + dt.timedelta(days=1):%Y-%m-%d} 00:00+00')"
                )
                session.execute(
                    f"CREATE TABLE events_p{day:%Y%m%d} PARTITION OF events FOR VALUES {bounds}".encode()
                )

    def fill(self, size: int) -> None:
        """Bring the number of stored events to about this."""
        with self._session() as session:
            (counted,) = one(session, "SELECT last_value FROM event_seq")
            begin = max(int(counted), self._filled) + 1
            ranges = [
                (first, min(size, first + _FILL_AT_ONCE - 1))
                for first in range(begin, size + 1, _FILL_AT_ONCE)
            ]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for sampled in pool.map(self._fill_range, ranges):
                    self._samples += sampled
                    _say(f"  filled to {sampled.stop - 1:,}")
            self._filled = size
            session.execute("SELECT setval('event_seq', greatest(%s, last_value)) FROM event_seq", (size,))
            session.execute("VACUUM ANALYZE event_keys")
            session.execute("VACUUM ANALYZE events")
            session.execute("CHECKPOINT")

    def _fill_range(self, bounds: tuple[int, int]) -> range:
        """Make the rows of these numbers, and return those that can be asked for."""
        first, last = bounds
        values = {
            "begin": self._begin,
            "most": self._most * 1.01,
            "days": DAYS,
            "first": first,
            "last": last,
        }
        sampled = range(first, last + 1, max(1, (last - first) // SAMPLED))
        keys = [(identity(f"{TOPIC}.{n % 8}", f"filled-{n}").hex(), n) for n in sampled]
        with self._session() as session:
            session.execute(_FILL.encode(), values)
            session.cursor().executemany(_SET_KEY.encode(), keys)
        return sampled

    def sink(self, load: Workload, *, expire: bool = False) -> dict[str, float]:
        """Records per second of one worker; with `expire`, while the oldest day is dropped."""
        self._turn += 1
        topic = f"events-{self._turn}"
        self._kafka.create_topic(topic)
        self._kafka.fill(topic, ((event.key, event.value) for event in _renamed(load, self._turn)))
        deployment = self._deployment(topic)
        with self._session() as session:
            (before,) = one(session, _RECEIVED)
            wal = self._postgres.wal_bytes()
            with deployment.worker():
                # Timed from the first verdicts seen: before, the worker starts and joins its group.
                began, first = self._wait(session, before + 1)
                dropped = self._drop_a_day(deployment) if expire else 0.0
                ended, last = self._wait(session, before + len(load.events))
            (received,) = one(session, _RECEIVED)
            wal = self._postgres.wal_bytes() - wal
        if received != before + len(load.events):
            raise AssertionError(f"{received - before} of {len(load.events)} records were counted")
        self._kafka.delete_topic(topic)
        return {
            "records_per_second": (last - first) / (ended - began),
            "wal_bytes_per_record": wal / len(load.events),
            "dropping_seconds": dropped,
        }

    def disk(self) -> dict[str, float]:
        """Bytes per stored event."""
        with self._session() as session:
            tables, indexes = one(session, _DISK)
            (events,) = one(session, "SELECT count(*) FROM event_keys")
        return {
            "stored": float(events),
            "table_bytes_per_event": tables / events,
            "index_bytes_per_event": indexes / events,
        }

    def routes(self) -> dict[str, dict[str, float]]:
        """Milliseconds of each route: median and 99th percentile."""
        deployment = self._deployment(_IDLE_TOPIC)
        middle = self._begin + dt.timedelta(days=DAYS / 2)
        hour = f"since={_moment(middle)}&until={_moment(middle + dt.timedelta(hours=1))}"
        with deployment.admin(), httpx.Client(base_url=deployment.admin_url, timeout=60) as client:
            asked = {
                "/events": ["/events?limit=100"],
                "/events?topic=": [f"/events?limit=100&topic={TOPIC}.3"],
                "/events?since=&until=": [f"/events?limit=100&{hour}"],
                "/events/{topic}/{event_id}": [
                    f"/events/{TOPIC}.{n % 8}/filled-{n}"
                    for n in random.Random(0).sample(self._samples, ASKED)
                ],
                "/stats": ["/stats"],
                "/topics": ["/topics"],
                "/partitions": ["/partitions"],
                "/dead-letters": ["/dead-letters?limit=100"],
            }
            return _timed(client, asked)

    def _drop_a_day(self, deployment: Deployment) -> float:
        began = time.monotonic()
        deployment.environment["AGGREGATOR_RETENTION__EVENTS_DAYS"] = str(DAYS - 1)
        told = deployment.run("retention", "run", "--json")
        _say(f"  retention: {told.strip()[:200]}")
        return time.monotonic() - began

    def _wait(self, session: psycopg.Connection[Any], goal: int) -> tuple[float, int]:
        """The moment at which so many records have their verdict, and how many have by then."""
        deadline = time.monotonic() + _STUCK_SECONDS
        seen = 0
        while True:
            (received,) = one(session, _RECEIVED)
            if received >= goal:
                return time.monotonic(), int(received)
            if received > seen:
                seen, deadline = received, time.monotonic() + _STUCK_SECONDS
            if time.monotonic() > deadline:
                raise AssertionError(f"the worker stopped at {received} of {goal} records")
            time.sleep(_LOOK_SECONDS)

    def _deployment(self, topic: str) -> Deployment:
        return Deployment(self._directory, self._kafka.bootstrap, topic, self._url)

    @contextlib.contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self._url, autocommit=True) as session:
            yield session


def _renamed(load: Workload, turn: int) -> Iterator[Event]:
    """The same events under topics of this turn, so that none is stored yet."""
    for event in load.events:
        topic = f"{event.topic}.{turn}"
        document = msgspec.json.decode(event.value, type=dict[str, msgspec.Raw])
        renamed = {**document, "topic": topic}
        yield Event(topic, event.event_id, msgspec.json.encode(renamed))


def _timed(client: httpx.Client, asked: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each route: median and 99th percentile.

    The routes take turns: what the database does beside (a checkpoint, a vacuum) meets all of them alike.
    """
    for paths in asked.values():
        client.get(paths[0]).raise_for_status()
    taken: dict[str, list[float]] = {name: [] for name in asked}
    deadline = time.monotonic() + ASKING_SECONDS
    for number in range(ASKED):
        if number >= ASKED_AT_LEAST and time.monotonic() > deadline:
            break
        for name, paths in asked.items():
            began = time.perf_counter()
            client.get(paths[number % len(paths)]).raise_for_status()
            taken[name].append(1_000 * (time.perf_counter() - began))
    return {
        name: {"p50_ms": statistics.median(times), "p99_ms": statistics.quantiles(times, n=100)[98]}
        for name, times in taken.items()
    }


def _moment(moment: dt.datetime) -> str:
    return quote(moment.isoformat())


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    arguments = _arguments()
    machine = describe()
    load = workload(arguments.records)
    sizes: list[dict[str, Any]] = []
    with (
        work_directory() as directory,
        broker(directory) as kafka,
        database() as postgres,
        postgres.fresh() as url,
    ):
        growing = Growing(kafka, postgres, url, directory, arguments.sizes[-1])
        for size in arguments.sizes:
            _say(f"{size:,} events")
            growing.fill(size)
            rounds = [growing.sink(load) for _ in range(arguments.rounds)]
            sink = {name: statistics.median(one_[name] for one_ in rounds) for name in rounds[0]}
            sizes.append({"size": size, **sink, **growing.disk(), "routes": growing.routes()})
            # The next size can be an hour away.
            _say(msgspec.json.encode(sizes[-1]).decode())
        expiring = growing.sink(load, expire=True)
    _show(sizes, expiring)
    document = {
        "benchmark": "scale",
        **machine,
        "settings": {
            "records": len(load.events),
            "rounds": arguments.rounds,
            "broker": kafka.settings,
            "database": postgres.settings,
        },
        "sizes": sizes,
        "while_a_day_is_dropped": expiring,
    }
    write("scale", document, RESULTS if arguments.write else None)


def _show(sizes: Sequence[dict[str, Any]], expiring: dict[str, float]) -> None:
    figures = [
        ("stored", "stored events", "{:,.0f}"),
        ("records_per_second", "records/s", "{:,.0f}"),
        ("wal_bytes_per_record", "WAL B/record", "{:,.0f}"),
        ("table_bytes_per_event", "tables B/event", "{:,.0f}"),
        ("index_bytes_per_event", "indexes B/event", "{:,.0f}"),
    ]
    rows = [["", *(f"{size['size']:,}" for size in sizes)]]
    rows += [[title, *(pattern.format(size[name]) for size in sizes)] for name, title, pattern in figures]
    for route in sizes[0]["routes"]:
        rows.append([f"{route} p99 ms", *(f"{size['routes'][route]['p99_ms']:,.1f}" for size in sizes)])
    first, last = sizes[0], sizes[-1]
    sys.stdout.write(f"\nOne worker, one database, as it grows\n\n{table(rows)}\n\n")
    sys.stdout.write(
        f"throughput at the last size: {last['records_per_second'] / first['records_per_second']:.2f}"
        f" of that at the first; while a day is dropped ({expiring['dropping_seconds']:.1f} s):"
        f" {expiring['records_per_second'] / last['records_per_second']:.2f} of that without\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000, 50_000_000])
    parser.add_argument("--records", type=int, default=200_000, help="records of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements at each size")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}/scale.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
