"""How fast events get from HTTP into the log, acknowledged: our gateway, its floor, and other programs.

Usage: python -m benchmarks.gateway [--seconds N] [--rounds N] [--only NAME ...] [--write]

1, 10, 100 and 1,000 events in a request. What was acknowledged is compared with what the log holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from benchmarks.gateway_stage import SIZES, START_SECONDS, Gateway, GatewayStage, Running, bare_asgi
from benchmarks.http_load import CONNECTIONS, require_wrk
from benchmarks.machine import describe, output_of
from benchmarks.peers import mq_bridge, redpanda_connect, strimzi_bridge
from benchmarks.producer_test import ProducerTest
from benchmarks.result import Column, Table, arguments, chosen, finish, several
from benchmarks.rounds import Contestant, Figures, run_rounds
from benchmarks.servers import broker, work_directory
from benchmarks.workload import workload
from tests.support.processes import aggregator, free_port, wait_ready

EVENTS: Final = 40_000
OURS: Final = "aggregator gateway"


class OurGateway(Gateway):
    """Our gateway as it is deployed, one process, with its default settings."""

    name = OURS
    environment: Mapping[str, str] = {}

    @property
    def settings(self) -> Mapping[str, str]:
        return {"processes": "1", **(self.environment or {"settings": "defaults"})}

    @contextlib.contextmanager
    def running(self, topic: str | None, size: int) -> Iterator[Running]:
        port = free_port()
        environment = {
            "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS": self.stage.broker.bootstrap,
            "AGGREGATOR_KAFKA__TOPIC": str(topic),
            "AGGREGATOR_INGEST__PORT": str(port),
            **self.environment,
        }
        log = self.stage.directory / f"gateway-{topic}-{size}.log"
        with aggregator("gateway", "gateway", log=log, environment=environment) as process:
            wait_ready(process, f"http://127.0.0.1:{port}", START_SECONDS)
            yield Running(process, f"http://127.0.0.1:{port}/publish")
            process.terminate()
        log.unlink()


class QuietGateway(OurGateway):
    """The same without a line in its log for every request, which other programs do not write either."""

    name = "aggregator gateway, no request log"
    environment: Mapping[str, str] = {"AGGREGATOR_LOG__LEVEL": "warning"}


class BareAsgi(Gateway):
    """Reads the body and answers a constant, on the same HTTP server: nothing in Python is faster."""

    name = "floor: bare ASGI"
    settings: Mapping[str, str] = {"server": "uvicorn, uvloop, httptools", "processes": "1"}

    def measure(self) -> Figures:
        return self.stage.measure(self, None)

    @contextlib.contextmanager
    def running(self, topic: str | None, size: int) -> Iterator[Running]:
        with bare_asgi(self.stage.directory / "bare.log") as (process, port):
            yield Running(process, f"http://127.0.0.1:{port}/publish")


def main() -> None:
    told = arguments("gateway", __doc__, seconds=(5, "of load, for each size and round"))
    require_wrk()
    with work_directory() as directory, broker(directory) as kafka:
        machine = describe()
        stage = GatewayStage(kafka, workload(EVENTS), directory, told.seconds)
        contestants: list[Contestant] = [
            OurGateway(stage),
            QuietGateway(stage),
            BareAsgi(stage),
            ProducerTest(stage),
            mq_bridge.HttpGateway(stage),
            redpanda_connect.HttpGateway(stage),
            strimzi_bridge.HttpGateway(stage),
        ]
        outcomes = run_rounds(chosen(contestants, told.only), told.rounds)
    settings = {
        "rounds": told.rounds,
        "seconds": told.seconds,
        "connections": CONNECTIONS,
        "load": output_of("wrk", "-v").partition(" Copyright")[0],
        "broker": kafka.settings,
    }
    tables = [Table(several(size, "request"), _columns(size)) for size in SIZES]
    finish("gateway", machine, settings, tables, outcomes, OURS, keep=told.write)


def _columns(size: int) -> list[Column]:
    return [
        Column(f"events_per_second_{size}", "events/s", more_is_better=True),
        Column(f"events_per_cpu_second_{size}", "events per CPU second", more_is_better=True),
        Column(f"cpu_us_per_event_{size}", "CPU µs/event", "{:,.1f}"),
        Column(f"p50_ms_{size}", "p50 ms", "{:,.1f}"),
        Column(f"p99_ms_{size}", "p99 ms", "{:,.1f}"),
        Column(f"peak_rss_mb_{size}", "peak MB"),
    ]


if __name__ == "__main__":
    main()
