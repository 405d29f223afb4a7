"""One broker, and one gateway after the other in front of it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.http_load import CONNECTIONS, Load, press, write_bodies
from benchmarks.resources import used
from benchmarks.rounds import Figures, LeftOut, Staged
from benchmarks.servers import Broker
from benchmarks.workload import Event, Workload
from tests.support.processes import Process, free_port

SIZES: Final = (1, 10, 100, 1_000)
_WARM_SECONDS: Final = 2
START_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Running:
    """A gateway that takes requests."""

    process: Process
    url: str


class GatewayStage:
    """The broker and the requests, and how a contestant is measured with them.

    What the log holds afterwards is compared with what was acknowledged: at least that, and at most what can
    have been cut off at the end of the load besides.
    """

    def __init__(self, broker: Broker, load: Workload, directory: Path, seconds: int) -> None:
        self.broker = broker
        self.directory = directory
        self.seconds = seconds
        self.events = load.events
        self._topics = itertools.count(1)
        self._bodies: dict[tuple[str, int], Path] = {}

    @contextlib.contextmanager
    def topic(self) -> Iterator[str]:
        """A new log topic, deleted afterwards."""
        name = f"gateway-{next(self._topics)}"
        self.broker.create_topic(name)
        try:
            yield name
        finally:
            self.broker.delete_topic(name)

    def measure(self, gateway: Gateway, topic: str | None) -> Figures:
        """One round of a running contestant, all sizes. Raises LeftOut if anything was refused or lost.

        Args:
            topic: where the records go; None for a floor that appends none.
        """
        figures: dict[str, float] = {}
        for size in gateway.sizes:
            with gateway.running(topic, size) as running:
                figures |= self._measure_size(gateway, running, topic, size)
        return figures

    def _measure_size(
        self, gateway: Gateway, running: Running, topic: str | None, size: int
    ) -> dict[str, float]:
        bodies = self._body_file(gateway, size)
        already = self.broker.end_offset(topic) if topic else 0
        warm = press(running.url, bodies, gateway.content_type, _WARM_SECONDS)
        before, broker_before = used(running.process.pid), used(self.broker.pid)
        load = press(running.url, bodies, gateway.content_type, self.seconds)
        after, broker_after = used(running.process.pid), used(self.broker.pid)
        for part in (warm, load):
            if part.refused or part.broken or not part.requests:
                raise LeftOut(f"{part.refused} requests refused, {part.broken} broken: {load}")
        if topic:
            self._check(topic, already, warm, load, size)
        events = load.requests * size
        cpu = after.cpu_seconds - before.cpu_seconds
        figures = {
            "events_per_second": events / load.seconds,
            "events_per_cpu_second": events / cpu,
            "cpu_us_per_event": cpu / events * 1e6,
            "broker_cpu_us_per_event": (broker_after.cpu_seconds - broker_before.cpu_seconds) / events * 1e6,
            "p50_ms": load.p50_ms,
            "p99_ms": load.p99_ms,
            "peak_rss_mb": after.peak_rss_mb,
        }
        return {f"{name}_{size}": value for name, value in figures.items()}

    def _check(self, topic: str, already: int, warm: Load, load: Load, size: int) -> None:
        acknowledged = (warm.requests + load.requests) * size
        most = acknowledged + 2 * CONNECTIONS * size
        deadline = time.monotonic() + 5
        while not acknowledged <= (appended := self.broker.end_offset(topic) - already) <= most:
            if time.monotonic() > deadline:
                raise LeftOut(f"{acknowledged:,} events were acknowledged, and the log holds {appended:,}.")
            time.sleep(0.2)

    def _body_file(self, gateway: Gateway, size: int) -> Path:
        file = self._bodies.get((gateway.dialect, size))
        if file is None:
            file = self._bodies[gateway.dialect, size] = self.directory / f"{gateway.dialect}-{size}.bodies"
            events = self.events
            groups = (events[start : start + size] for start in range(0, len(events) - size + 1, size))
            write_bodies(file, (gateway.body(group) for group in groups))
        return file


class Gateway(Staged[GatewayStage]):
    """A contestant: takes events by HTTP, and answers once the log has acknowledged them."""

    dialect: str = "array"
    """Names the form of its bodies."""
    content_type: str = "application/json"
    sizes: Sequence[int] = SIZES

    def measure(self) -> Figures:
        with self.stage.topic() as topic:
            return self.stage.measure(self, topic)

    def body(self, events: Sequence[Event]) -> bytes:
        """A request's body: an event, or an array of them."""
        if len(events) == 1:
            return events[0].value
        return b"[%b]" % b",".join(event.value for event in events)

    def running(self, topic: str | None, size: int) -> contextlib.AbstractContextManager[Running]:
        """Run it, for requests of this size."""
        raise NotImplementedError


@contextlib.contextmanager
def bare_asgi(log: Path) -> Iterator[tuple[Process, int]]:
    """The floor under a gateway, see `benchmarks.bare_asgi`, and its port."""
    port = free_port()
    process = Process("bare ASGI", [sys.executable, "-m", "benchmarks.bare_asgi", str(port)], log, {})
    try:
        wait_answering(process, port)
        yield process, port
    finally:
        process.close()


def wait_answering(process: Process, port: int) -> None:
    """Until something listens on the port. Raises LeftOut."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.returncode is not None or time.monotonic() > deadline:
            raise LeftOut(f"It does not listen: {process.output()[-600:]}")
        time.sleep(0.05)
