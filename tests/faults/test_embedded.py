"""The embedded mode, one process on SQLite, under the same load and with the same invariants."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.report import Report
from tests.faults.stage import CAUGHT_UP_SECONDS, Scene
from tests.support.invariants import Invariant, Violation
from tests.support.load import Load
from tests.support.log_reader import LocalReader
from tests.support.processes import REPOSITORY, Process, clean_environment, free_port, wait_ready, wait_until
from tests.support.small_disk import small_disk
from tests.support.tables import SqliteStore

STOP_SECONDS = 25.0
_SETTINGS = {"AGGREGATOR_LOG__FORMAT": "json", "AGGREGATOR_WORKER__BACKOFF_MAX_SECONDS": "1"}


class EmbeddedStage(Scene):
    """`aggregator dev` on a data directory, restartable on the same port."""

    def __init__(self, directory: Path, report: Report, data: Path | None = None) -> None:
        self.data = data or directory / "data"
        super().__init__(directory, report, SqliteStore(self.data / "store.db"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.load = Load(self.ledger, self.url)

    def open_reader(self) -> LocalReader:
        return LocalReader(self.data / "log.db")

    def start(self, *, load: bool = True) -> Process:
        """Start the process, and the load; returns when it is ready."""
        process = self.spawn("dev", ["cli", "dev", *self._arguments], _SETTINGS)
        wait_ready(process, self.url)
        if load:
            self.load.start()
        return process

    def variant(self, place: str, batch: int) -> Process:
        """One that kills itself at a place; see `dev_variant`."""
        command = ["tests.support.dev_variant", place, str(batch), *self._arguments]
        return self.spawn("dying dev", command, _SETTINGS)

    def violations(self, timeout: float = CAUGHT_UP_SECONDS) -> list[Violation]:
        found = super().violations(timeout)
        done = subprocess.run(
            [sys.executable, "-m", "cli", "verify", "--data-dir", str(self.data)],
            cwd=REPOSITORY,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        if done.returncode != 0:
            found.append(Violation(Invariant.VERIFY, done.stdout + done.stderr))
        self.report.checked.append(f"`aggregator verify`: {done.stdout.strip().splitlines()[-1]}")
        return found

    @property
    def _arguments(self) -> list[str]:
        return ["--port", str(self.port), "--data-dir", str(self.data)]


@pytest.fixture
def stage(tmp_path: Path, report: Report) -> Iterator[EmbeddedStage]:
    with EmbeddedStage(tmp_path, report) as stage:
        yield stage


@pytest.mark.parametrize("place", [pytest.param("before_store", marks=pytest.mark.slow), "before_commit"])
def test_process_killed_around_the_store_counts_nothing_twice(stage: EmbeddedStage, place: str) -> None:
    process = stage.start()
    stage.load.wait_for(300)
    assert process.terminate() == 0
    for batch in (1, 2, 3):
        stage.inject(f"kill -9 {place.replace('_', ' the ')}, batch {batch}")
        assert stage.variant(place, batch).wait(40) == -signal.SIGKILL
    stage.start(load=False)
    stage.recovered()
    stage.finish()


def test_process_killed_with_requests_in_flight_loses_nothing_acknowledged(stage: EmbeddedStage) -> None:
    process = stage.start()
    for _ in range(5):
        stage.load.wait_for(200)
        stage.inject("kill -9 with a request of every client in flight")
        # Frozen, it leaves every request that comes without an answer until it is killed.
        process.signal(signal.SIGSTOP)
        waiting_since = time.monotonic()
        wait_until(lambda since=waiting_since: time.monotonic() > since + 0.3, 5, "requests to come")  # type: ignore[misc]
        process.kill()
        process = stage.start(load=False)
    stage.recovered()
    stage.finish()


def test_process_stopped_under_load_ends_in_time_and_loses_nothing(stage: EmbeddedStage) -> None:
    process = stage.start()
    for _ in range(3):
        stage.load.wait_for(300)
        stage.inject("SIGTERM under load")
        began = time.monotonic()
        assert process.terminate(STOP_SECONDS) == 0
        stage.report.checked.append(f"stopped within {time.monotonic() - began:.1f} s")
        process = stage.start(load=False)
    stage.recovered()
    stage.finish()


@pytest.mark.slow
def test_full_disk_is_said_and_nothing_is_acknowledged_in_part(tmp_path: Path, report: Report) -> None:
    with (
        small_disk(64) as disk,
        EmbeddedStage(tmp_path, report, disk.path / "data") as stage,
    ):
        process = stage.start()
        stage.load.wait_for(300)
        stage.recovered()
        for _ in range(2):
            stage.inject("no room left on the disk; freed when requests have been refused")
            refused = stage.load.statuses().get(503, 0)
            disk.fill()
            wait_until(lambda n=refused: stage.load.statuses().get(503, 0) >= n + 6, 60, "503")  # type: ignore[misc]
            disk.free()
            stage.recovered()
        stage.load.wait_for(300)
        stage.finish()
        assert process.returncode is None
