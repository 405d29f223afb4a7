"""How long an event takes at a constant rate: until it is acknowledged, and until it can be read.

Usage: python -m benchmarks.end_to_end [--rate N] [--seconds N] [--rounds N] [--only NAME ...] [--write]

One event per request, a fifth of them copies. Latencies count from the moment an event was due to be sent,
not from when a connection was free for it: a server that stops for a second delays a second's worth of
events, and all of them are counted so. An event is stored when another connection sees it.

The floor is what the machine and the load make of it: an application that stores nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from benchmarks.end_to_end_stage import (
    CONNECTIONS,
    PERCENTILES,
    WARM_SECONDS,
    EndToEnd,
    EndToEndStage,
    Running,
)
from benchmarks.gateway_stage import START_SECONDS, bare_asgi
from benchmarks.machine import describe
from benchmarks.peers import mq_bridge
from benchmarks.result import Column, Table, arguments, chosen, finish
from benchmarks.rounds import Contestant, run_rounds
from benchmarks.servers import broker, database, work_directory
from benchmarks.stored_watch import INTERVAL_SECONDS
from benchmarks.workload import workload
from tests.support.processes import Process, aggregator, free_port, wait_ready

OURS: Final = "gateway, log, worker, Postgres"
_COST: Final = (
    Column("gateway_cpu_share", "gateway cores", "{:,.2f}"),
    Column("worker_cpu_share", "worker cores", "{:,.2f}"),
    Column("gateway_peak_rss_mb", "gateway peak MB"),
    Column("worker_peak_rss_mb", "worker peak MB"),
)


class Pipeline(EndToEnd):
    """Our gateway and one worker with their default settings."""

    name = OURS
    schema = None

    @property
    def settings(self) -> Mapping[str, str]:
        return {"settings": "defaults", "gateways": "1", "workers": "1", "partitions": str(self.partitions)}

    @contextlib.contextmanager
    def running(self, topic: str, url: str) -> Iterator[Running]:
        port = free_port()
        environment = {
            "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS": self.stage.broker.bootstrap,
            "AGGREGATOR_KAFKA__TOPIC": topic,
            "AGGREGATOR_KAFKA__GROUP_ID": topic,
            "AGGREGATOR_DATABASE__URL": url,
            "AGGREGATOR_INGEST__PORT": str(port),
            "AGGREGATOR_WORKER__PORT": "0",
        }

        def role(name: str) -> contextlib.AbstractContextManager[Process]:
            log = self.stage.directory / f"{topic}-{name}.log"
            return aggregator(name, name, log=log, environment=environment)

        with role("worker") as worker, role("gateway") as gateway:
            wait_ready(gateway, f"http://127.0.0.1:{port}", START_SECONDS)
            yield Running(port, gateway, worker)
            gateway.terminate()
            worker.terminate()


class OnePartition(Pipeline):
    """At such a rate a record is nearly a batch of its own in each of six partitions; one takes them all."""

    name = f"{OURS}; one partition"
    partitions = 1


class BareAsgi(EndToEnd):
    """Reads the body and answers a constant, on our HTTP server: what is left is the machine and the load."""

    name = "floor: bare ASGI"
    settings: Mapping[str, str] = {"server": "uvicorn, uvloop, httptools"}

    @contextlib.contextmanager
    def running(self, topic: str, url: str) -> Iterator[Running]:
        with bare_asgi(self.stage.directory / f"{topic}-bare.log") as (process, port):
            yield Running(port, process, None)


def main() -> None:
    told = arguments(
        "end_to_end", __doc__, rate=(1_000, "events per second"), seconds=(30, "measured in each round")
    )
    with work_directory() as directory, broker(directory) as kafka, database() as postgres:
        machine = describe()
        events = workload(told.rate * (told.seconds + WARM_SECONDS)).events
        stage = EndToEndStage(kafka, postgres, directory, events, told.rate)
        contestants: list[Contestant] = [
            Pipeline(stage),
            OnePartition(stage),
            mq_bridge.Pipeline(stage),
            BareAsgi(stage),
        ]
        outcomes = run_rounds(chosen(contestants, told.only), told.rounds)
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
    finish("end_to_end", machine, settings, tables, outcomes, OURS, keep=told.write)


def _columns(what: str) -> list[Column]:
    columns = [Column(f"{what}_p{p:g}_ms", f"p{p:g} ms", "{:,.1f}") for p in PERCENTILES]
    return [*columns, Column(f"{what}_max_ms", "max ms", "{:,.1f}")]


if __name__ == "__main__":
    main()
