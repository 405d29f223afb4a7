"""A deployment under load: processes, ledger, samples, and the check at the end."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import httpx
import psycopg
from confluent_kafka import KafkaException

from tests.faults.report import Report
from tests.faults.rig import Brokers, Database
from tests.support.deployment import Deployment
from tests.support.invariants import Invariant, Samples, Violation, violations
from tests.support.ledger import Ledger, Outcome
from tests.support.load import Load
from tests.support.log_reader import KafkaReader, LogRecord
from tests.support.processes import REPOSITORY, Process, wait_ready, wait_until
from tests.support.tables import Place, PostgresStore, Store

CAUGHT_UP_SECONDS = 60.0

SETTINGS = {
    # The product's proportions between these, at a pace that a test can wait for.
    "AGGREGATOR_KAFKA__SESSION_TIMEOUT_SECONDS": "5",
    "AGGREGATOR_KAFKA__REBALANCE_TIMEOUT_SECONDS": "4",
    "AGGREGATOR_KAFKA__HEARTBEAT_INTERVAL_SECONDS": "0.5",
    "AGGREGATOR_KAFKA__REQUEST_TIMEOUT_SECONDS": "8",
    "AGGREGATOR_KAFKA__PRODUCE_TIMEOUT_SECONDS": "6",
    "AGGREGATOR_KAFKA__METADATA_MAX_AGE_SECONDS": "2",
    "AGGREGATOR_KAFKA__START_TIMEOUT_SECONDS": "5",
    "AGGREGATOR_KAFKA__STOP_TIMEOUT_SECONDS": "3",
    "AGGREGATOR_KAFKA__COMMIT_TIMEOUT_SECONDS": "3",
    "AGGREGATOR_KAFKA__RECONNECT_AFTER_SECONDS": "6",
    "AGGREGATOR_DATABASE__CONNECT_TIMEOUT_SECONDS": "2",
    "AGGREGATOR_DATABASE__LOCK_TIMEOUT_SECONDS": "1",
    "AGGREGATOR_DATABASE__STATEMENT_TIMEOUT_SECONDS": "2.5",
    "AGGREGATOR_DATABASE__TRANSACTION_TIMEOUT_SECONDS": "3.5",
    "AGGREGATOR_INGEST__PUBLISH_TIMEOUT_SECONDS": "3",
    "AGGREGATOR_WORKER__PORT": "0",
    "AGGREGATOR_WORKER__RECHECK_INTERVAL_SECONDS": "10",
    "AGGREGATOR_WORKER__POLL_TIMEOUT_SECONDS": "0.2",
    "AGGREGATOR_WORKER__BACKOFF_MAX_SECONDS": "1",
    "AGGREGATOR_WORKER__HEARTBEAT_INTERVAL_SECONDS": "1",
    "AGGREGATOR_LOG__FORMAT": "json",
}


class Reader(Protocol):
    """The log, read by a client that is not ours."""

    def ends(self) -> dict[int, int]: ...

    def committed(self) -> dict[int, int]: ...

    def records(self, incarnations: dict[int, int]) -> list[LogRecord]: ...

    def close(self) -> None: ...


class Sampler:
    """Looks at positions and commits all the time. What cannot be seen during a fault is left out."""

    def __init__(self, store: Store, open_reader: Callable[[], Reader]) -> None:
        self.samples = Samples()
        self._store = store
        self._reader = open_reader()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._positions, name="sample-positions", daemon=True),
            threading.Thread(target=self._commits, name="sample-commits", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Samples:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._reader.close()
        return self.samples

    def look_at_commits(self) -> None:
        """Raises KafkaException, OSError while one of the two is away."""
        committed = self._reader.committed()
        self.samples.commits.append((committed, self._store.positions()))

    def _positions(self) -> None:
        while not self._stop.wait(0.1):
            with contextlib.suppress(OSError):
                self.samples.positions.append(self._store.positions())

    def _commits(self) -> None:
        while not self._stop.wait(0.3):
            with contextlib.suppress(OSError, KafkaException):
                self.look_at_commits()


class Scene:
    """What scenarios of both modes share: a load, its ledger, and the verdict on the invariants.

    Attributes:
        earlier: records of the log that it no longer holds, added by scenarios that make it forget.
        lost: those among them that were gone before anybody could read them.
    """

    load: Load

    def __init__(self, directory: Path, report: Report, store: Store) -> None:
        self.directory = directory
        self.report = report
        self.store = store
        self.ledger = Ledger()
        self.earlier: list[LogRecord] = []
        self.lost: frozenset[Place] = frozenset()
        self._stack = contextlib.ExitStack()
        self._started = 0

    def open_reader(self) -> Reader:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.reader = self.open_reader()
        self.sampler = Sampler(self.store, self.open_reader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sender in [*self.load.http, *self.load.direct]:
            sender.stopping.set()
        self._stack.close()
        self.sampler.stop()
        self.reader.close()

    def spawn(
        self, name: str, command: Sequence[str], environment: dict[str, str], directory: Path = REPOSITORY
    ) -> Process:
        """Start a process, of the code in the directory, that ends with the scene."""
        self._started += 1
        log = self.directory / f"{self._started:02}-{name.replace(' ', '-')}.log"
        process = Process(name, [sys.executable, "-m", *command], log, environment, directory)
        self._stack.callback(process.close)
        return process

    def inject(self, what: str) -> None:
        """Note what is being done, for the report."""
        self.report.injected.append(what)

    def recovered(self, timeout: float = CAUGHT_UP_SECONDS) -> float:
        """Call when the fault has healed: waits until everything in the log now has its verdict, and a
        request that was sent since is acknowledged. Returns the seconds that took."""
        started = time.monotonic()
        acknowledged = {client.name: client.acknowledged for client in self.load.http}
        goal: dict[int, int] | None = None
        trouble: object = None

        def back() -> bool:
            nonlocal goal, trouble
            self.load.raise_failure()
            try:
                goal = goal or self.reader.ends()
                trouble = goal, self.store.positions()
            except (OSError, KafkaException) as error:
                trouble = error
                return False
            waiting = [c.name for c in self.load.http if c.acknowledged == acknowledged[c.name]]
            if waiting and self.load.running:
                trouble = f"{', '.join(waiting)} had nothing acknowledged"
                return False
            return self._reached(goal)

        try:
            wait_until(back, timeout, "recovery")
        except AssertionError as error:
            raise AssertionError(f"{Invariant.I7}: not within {timeout:g} s of healing: {trouble}") from error
        seconds = time.monotonic() - started
        self.report.recoveries.append(seconds)
        return seconds

    def caught_up(self) -> bool:
        """Whether everything the log holds now has its verdict."""
        return self._reached(self.reader.ends())

    def finish(self, timeout: float = CAUGHT_UP_SECONDS) -> None:
        """End the load, wait until the store has caught up, and check every invariant."""
        found = self.violations(timeout)
        assert not found, "\n" + "\n".join(map(str, found))

    def violations(self, timeout: float = CAUGHT_UP_SECONDS) -> list[Violation]:
        """End the load, and say what is wrong."""
        self.load.stop()
        ends = self.reader.ends()
        late = []
        try:
            wait_until(lambda: self._reached(ends), timeout, "the end of the log")
        except AssertionError:
            positions = self.store.positions()
            late = [
                Violation(
                    Invariant.I7, f"not within {timeout:g} s: positions {positions}, ends of the log {ends}"
                )
            ]
        self.sampler.look_at_commits()
        samples = self.sampler.stop()
        tables = self.store.tables()
        incarnations = {p: incarnation for p, (incarnation, _) in tables.positions.items()}
        log = [*self.earlier, *self.reader.records(incarnations)]
        self._note_figures(len(log), samples)
        return late + violations(tables, log, self.ledger, samples, self.lost)

    def _reached(self, goal: dict[int, int]) -> bool:
        with contextlib.suppress(OSError):
            positions = self.store.positions()
            return all(positions.get(p, (0, 0))[1] >= end for p, end in goal.items())
        return False

    def _note_figures(self, records: int, samples: Samples) -> None:
        attempts = self.ledger.attempts
        counts = ", ".join(f"{attempts[outcome]} {outcome}" for outcome in Outcome)
        answers = ", ".join(f"{n} x {status}" for status, n in sorted(self.load.statuses().items()))
        self.report.checked += [
            f"I1-I7 over {records} records",
            f"attempts: {counts}",
            f"answers: {answers}, slowest {self.load.slowest_answer:.1f} s",
            f"{len(samples.positions)} positions and {len(samples.commits)} commits sampled",
        ]


class Stage(Scene):
    """The production roles, each a process of its own, on a topic and a database of their own."""

    def __init__(
        self,
        directory: Path,
        report: Report,
        brokers: Brokers,
        database: Database,
        *,
        replicas: int = 1,
        topic_settings: dict[str, str] | None = None,
    ) -> None:
        self.brokers = brokers
        self.database = database
        self.database_url = database.create()
        super().__init__(directory, report, PostgresStore(self.database_url))
        self.topic = f"events-{self.database_url.rpartition('_')[2]}"
        brokers.create_topic(self.topic, replicas=replicas, settings=topic_settings)
        self.deployment = Deployment(
            directory, brokers.bootstrap, self.topic, database.proxied(self.database_url), **SETTINGS
        )
        self.load = self.make_load()

    def make_load(self, **options: Any) -> Load:
        """A load on this deployment; not started."""
        self.load = Load(
            self.ledger, self.deployment.gateway_url, self.brokers.bootstrap, self.topic, **options
        )
        return self.load

    def open_reader(self) -> KafkaReader:
        return KafkaReader(
            self.brokers.bootstrap, self.topic, self.deployment.environment["AGGREGATOR_KAFKA__GROUP_ID"]
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.brokers.heal()
        self.database.heal()
        super().__exit__(kind, error, trace)
        self.database.drop(self.database_url)

    def start(self, *, workers: int = 2, load: bool = True) -> list[Process]:
        """Start gateway, admin API and workers; then the load. Returns the workers, once they have stored
        something: a fault that comes before would hit nobody."""
        self.gateway = self.role("gateway")
        self.admin = self.role("admin")
        running = [self.worker() for _ in range(workers)]
        wait_ready(self.gateway, self.deployment.gateway_url, 40)
        wait_ready(self.admin, self.deployment.admin_url, 40)
        if load:
            self.load.start()
        if load and running:
            self.storing()
        return running

    def storing(self) -> None:
        """Wait until workers store what comes."""
        wait_until(lambda: any(offset for _, offset in self.store.positions().values()), 40, "stored events")

    def role(self, name: str) -> Process:
        return self.spawn(name, ["cli", name], self.deployment.environment)

    def worker(self) -> Process:
        return self.role("worker")

    def variant(self, build: str, place: str = "", batch: int = 0, signal: str = "SIGKILL") -> Process:
        """A worker that is built otherwise, or ends or freezes by itself; see `worker_variant`."""
        halt = [place, str(batch), signal] if place else []
        return self.spawn(
            f"{build} worker", ["tests.support.worker_variant", build, *halt], self.deployment.environment
        )

    def session(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A session with the database, past the proxy; every statement commits."""
        return psycopg.connect(self.database_url, autocommit=True, connect_timeout=5)

    def sql(self, statement: str) -> None:
        with self.session() as session:
            session.execute(statement.encode())

    def stats(self) -> dict[str, Any]:
        """What the admin API says."""
        answer: dict[str, Any] = (
            httpx.get(f"{self.deployment.admin_url}/stats", timeout=20).raise_for_status().json()
        )
        return answer

    def violations(self, timeout: float = CAUGHT_UP_SECONDS) -> list[Violation]:
        found = super().violations(timeout)
        if self.admin.returncode is None and not found:
            stats = self.stats()
            tables = self.store.tables()
            received = sum(counts.received for counts in tables.counts.values())
            if (stats["received"], stats["unique_processed"]) != (received, len(tables.events)):
                found.append(
                    Violation(Invariant.I4, f"GET /stats says {stats}, the tables {received} records")
                )
        return [*found, *self.reconciled()]

    def reconciled(self) -> list[Violation]:
        """What the product's own reconciliation has found."""
        try:
            report = self.deployment.verify()
        except AssertionError as error:
            return [Violation(Invariant.VERIFY, str(error)[-2_000:])]
        self.report.checked.append(f"`aggregator verify` over {report['checked']['records']} records")
        return []
