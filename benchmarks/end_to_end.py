"""How long an event takes at a constant rate: until it is acknowledged, and until it can be read.

Usage: python -m benchmarks.end_to_end [--rate N] [--seconds N] [--rounds N] [--write]

One event per request, a fifth of them copies. Latencies count from the moment an event was due to be sent,
not from when a connection was free for it: a server that stops for a second delays a second's worth of
events, and all of them are counted so. An event is stored when another connection sees it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.gateway_stage import START_SECONDS
from benchmarks.http_client import Sent, send_at_rate
from benchmarks.machine import REPOSITORY, describe
from benchmarks.resources import used
from benchmarks.result import Column, Table, arguments, finish
from benchmarks.rounds import Figures, LeftOut, run_rounds
from benchmarks.servers import PARTITIONS, Broker, Database, broker, database, work_directory
from benchmarks.stored_watch import INTERVAL_SECONDS
from benchmarks.workload import Event, workload
from tests.support.processes import Process, aggregator, clean_environment, free_port, wait_ready

CONNECTIONS: Final = 64
LOG: Final = "events"
NAME: Final = "gateway, log, worker, Postgres"
PERCENTILES: Final = (50, 90, 99, 99.9)
_WARM_SECONDS: Final = 30
_COST: Final = (
    Column("gateway_cpu_share", "gateway cores", "{:,.2f}"),
    Column("worker_cpu_share", "worker cores", "{:,.2f}"),
    Column("gateway_peak_rss_mb", "gateway peak MB"),
    Column("worker_peak_rss_mb", "worker peak MB"),
)
_WATCH_SECONDS: Final = 60


class Pipeline:
    """Our gateway and one worker with their default settings, new processes and a new database each round."""

    def __init__(
        self,
        broker: Broker,
        database: Database,
        directory: Path,
        events: Sequence[Event],
        rate: int,
        partitions: int,
    ) -> None:
        self.name = NAME if partitions == PARTITIONS else f"{NAME}; one partition"
        self._partitions = partitions
        self._broker = broker
        self._database = database
        self._directory = directory
        self._events = events
        self._rate = rate
        self._round = 0
        self.settings = {
            "settings": "defaults",
            "gateways": "1",
            "workers": "1",
            "partitions": str(partitions),
        }

    def prepare(self) -> None:
        """Nothing: it is here."""

    def measure(self) -> Figures:
        self._round += 1
        topic = f"{LOG}-{self._partitions}-{self._round}"
        self._broker.create_topic(topic, self._partitions)
        warm = self._rate * _WARM_SECONDS
        with self._database.fresh() as url, self._running(topic, url) as (gateway, worker, port):
            send_at_rate(port, [event.value for event in self._events[:warm]], self._rate, CONNECTIONS)
            events = self._events[warm:]
            bodies = [event.value for event in events]
            before = used(gateway.pid), used(worker.pid)
            with _watching(url) as watch:
                # A collection of this process's garbage would be counted as the server's latency.
                gc.collect()
                gc.disable()
                sent = send_at_rate(port, bodies, self._rate, CONNECTIONS)
                gc.enable()
                stored = watch.end()
            after = used(gateway.pid), used(worker.pid)
        self._broker.delete_topic(topic)
        if sent.refused:
            raise LeftOut(f"{sent.refused} of {len(bodies)} requests were refused.")
        known = {event.event_id for event in self._events[:warm]}
        return {
            **_percentiles("publish", sent.latencies_ms()),
            **_percentiles("stored", _stored_ms(events, known, sent, stored)),
            "gateway_cpu_share": (after[0].cpu_seconds - before[0].cpu_seconds) / sent.seconds,
            "worker_cpu_share": (after[1].cpu_seconds - before[1].cpu_seconds) / sent.seconds,
            "gateway_peak_rss_mb": after[0].peak_rss_mb,
            "worker_peak_rss_mb": after[1].peak_rss_mb,
        }

    @contextlib.contextmanager
    def _running(self, topic: str, url: str) -> Iterator[tuple[Process, Process, int]]:
        port = free_port()
        environment = {
            "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS": self._broker.bootstrap,
            "AGGREGATOR_KAFKA__TOPIC": topic,
            "AGGREGATOR_KAFKA__GROUP_ID": topic,
            "AGGREGATOR_DATABASE__URL": url,
            "AGGREGATOR_INGEST__PORT": str(port),
            "AGGREGATOR_WORKER__PORT": "0",
        }

        def role(name: str) -> contextlib.AbstractContextManager[Process]:
            return aggregator(
                name, name, log=self._directory / f"{topic}-{name}.log", environment=environment
            )

        with role("worker") as worker, role("gateway") as gateway:
            wait_ready(gateway, f"http://127.0.0.1:{port}", START_SECONDS)
            yield gateway, worker, port
            gateway.terminate()
            worker.terminate()


class _Watch:
    """The process that notes when events become visible."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> dict[str, float]:
        """Stop it once nothing more comes, and return what it saw."""
        printed, _ = self._process.communicate("", timeout=_WATCH_SECONDS)
        seen: dict[str, float] = json.loads(printed)
        return seen


@contextlib.contextmanager
def _watching(url: str) -> Iterator[_Watch]:
    command = [sys.executable, "-m", "benchmarks.stored_watch", url]
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            if "watching" not in process.stderr.readline():
                raise LeftOut("The process that watches the database did not start.")
            yield _Watch(process)
        finally:
            process.kill()


def _stored_ms(events: Sequence[Event], known: set[str], sent: Sent, stored: dict[str, float]) -> list[float]:
    """Of the first sending of each event; a copy stores nothing.

    Raises LeftOut if an event never became visible.
    """
    latencies = []
    for event, due in zip(events, sent.due, strict=True):
        if event.event_id not in known:
            known.add(event.event_id)
            if event.event_id not in stored:
                raise LeftOut(f"An event was acknowledged and not seen in the database: {event.event_id}")
            latencies.append((stored[event.event_id] - due) * 1e3)
    return latencies


def _percentiles(what: str, latencies: list[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    last = len(ordered) - 1
    figures = {f"{what}_p{percent:g}_ms": ordered[round(last * percent / 100)] for percent in PERCENTILES}
    return {**figures, f"{what}_max_ms": ordered[-1], f"{what}_mean_ms": statistics.fmean(ordered)}


def main() -> None:
    told = arguments(
        "end_to_end", __doc__, rate=(1_000, "events per second"), seconds=(30, "measured in each round")
    )
    count = told.rate * (told.seconds + _WARM_SECONDS)
    with work_directory() as directory, broker(directory) as kafka, database() as postgres:
        machine = describe()
        events = workload(count).events
        # At such a rate a record is nearly a batch of its own in each of six partitions; one takes them all.
        pipelines = [
            Pipeline(kafka, postgres, directory, events, told.rate, partitions)
            for partitions in (PARTITIONS, 1)
        ]
        outcomes = run_rounds(pipelines, told.rounds)
    settings = {
        "rate": told.rate,
        "seconds": told.seconds,
        "rounds": told.rounds,
        "connections": CONNECTIONS,
        "looks_at_the_database_every_seconds": INTERVAL_SECONDS,
        "broker": kafka.settings,
        "database": postgres.settings,
    }
    tables = [
        Table(f"{told.rate:,} events/s, until acknowledged", _columns("publish")),
        Table(f"{told.rate:,} events/s, until it can be read", _columns("stored")),
        Table("What that took", _COST),
    ]
    finish("end_to_end", machine, settings, tables, outcomes, NAME, keep=told.write)


def _columns(what: str) -> list[Column]:
    columns = [Column(f"{what}_p{p:g}_ms", f"p{p:g} ms", "{:,.1f}") for p in PERCENTILES]
    return [*columns, Column(f"{what}_max_ms", "max ms", "{:,.1f}")]


if __name__ == "__main__":
    main()
