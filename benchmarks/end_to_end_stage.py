"""One broker and one database, and one way of events from HTTP into a table after the other."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.http_client import Sent, send_at_rate
from benchmarks.machine import REPOSITORY
from benchmarks.resources import used
from benchmarks.rounds import Figures, LeftOut, Staged
from benchmarks.servers import PARTITIONS, Broker, Database
from benchmarks.sink_stage import PEER_SCHEMA
from benchmarks.workload import Event
from tests.support.processes import Process, clean_environment

CONNECTIONS: Final = 64
PERCENTILES: Final = (50, 90, 99, 99.9)
WARM_SECONDS: Final = 30
_WATCH_SECONDS: Final = 60

WATCHED_PEER_SCHEMA: Final = PEER_SCHEMA + "CREATE INDEX ON events (seq);"
"""With an index by which the newest rows are found, as our table has one."""


@dataclass(frozen=True)
class Running:
    """What takes requests and, unless it is a floor that stores nothing, what writes to the database."""

    port: int
    gateway: Process
    worker: Process | None


class EndToEndStage:
    """The servers and the requests, and how a contestant is measured with them.

    New processes, a new log topic and a new database for each round.
    """

    def __init__(
        self, broker: Broker, database: Database, directory: Path, events: Sequence[Event], rate: int
    ) -> None:
        """
        Args:
            events: the first of them, for `WARM_SECONDS`, are not measured.
            rate: events per second.
        """
        self.broker = broker
        self.database = database
        self.directory = directory
        self._rate = rate
        warm = rate * WARM_SECONDS
        self._warm, self._events = events[:warm], events[warm:]
        self._topics = itertools.count(1)

    def measure(self, contestant: EndToEnd) -> Figures:
        """One round. Raises LeftOut if anything was refused, or was acknowledged and not stored."""
        topic = f"end-to-end-{next(self._topics)}"
        self.broker.create_topic(topic, contestant.partitions)
        try:
            with (
                self.database.fresh(schema=contestant.schema) as url,
                contestant.running(topic, url) as running,
            ):
                return self._measure(running, url)
        finally:
            self.broker.delete_topic(topic)

    def _measure(self, running: Running, url: str) -> Figures:
        send_at_rate(running.port, [event.value for event in self._warm], self._rate, CONNECTIONS)
        bodies = [event.value for event in self._events]
        roles = {"gateway": running.gateway} | ({"worker": running.worker} if running.worker else {})
        before = {role: used(process.pid) for role, process in roles.items()}
        with _watching(url) if running.worker else contextlib.nullcontext() as watch:
            # A collection of this process's garbage would be counted as the server's latency.
            gc.collect()
            gc.disable()
            sent = send_at_rate(running.port, bodies, self._rate, CONNECTIONS)
            gc.enable()
            stored = watch.end() if watch else None
        if sent.refused:
            raise LeftOut(f"{sent.refused} of {len(bodies)} requests were refused.")
        figures = _percentiles("publish", sent.latencies_ms())
        if stored is not None:
            figures |= _percentiles("stored", self._stored_ms(sent, stored))
        for role, process in roles.items():
            after = used(process.pid)
            figures[f"{role}_cpu_share"] = (after.cpu_seconds - before[role].cpu_seconds) / sent.seconds
            figures[f"{role}_peak_rss_mb"] = after.peak_rss_mb
        return figures

    def _stored_ms(self, sent: Sent, stored: Mapping[str, float]) -> list[float]:
        """Of the first sending of each event; a copy stores nothing.

        Raises LeftOut if an event never became visible, or none was new.
        """
        known = {event.event_id for event in self._warm}
        latencies = []
        for event, due in zip(self._events, sent.due, strict=True):
            if event.event_id not in known:
                known.add(event.event_id)
                if event.event_id not in stored:
                    raise LeftOut(f"An event was acknowledged and not seen in the database: {event.event_id}")
                latencies.append((stored[event.event_id] - due) * 1e3)
        if not latencies:
            raise LeftOut("Every measured event is a copy of one that was sent before; measure for longer.")
        return latencies


class EndToEnd(Staged[EndToEndStage]):
    """A contestant: takes one event per request, and stores it."""

    partitions: int = PARTITIONS
    schema: str | None = WATCHED_PEER_SCHEMA
    """Statements that make its tables; None for ours."""

    def measure(self) -> Figures:
        return self.stage.measure(self)

    def running(self, topic: str, url: str) -> contextlib.AbstractContextManager[Running]:
        """Run it, with this log topic and this database."""
        raise NotImplementedError


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


def _percentiles(what: str, latencies: list[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    last = len(ordered) - 1
    figures = {f"{what}_p{percent:g}_ms": ordered[round(last * percent / 100)] for percent in PERCENTILES}
    return {**figures, f"{what}_max_ms": ordered[-1], f"{what}_mean_ms": statistics.fmean(ordered)}
