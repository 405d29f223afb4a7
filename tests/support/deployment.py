"""The production roles as real processes on a real broker and a real database."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.support.processes import (
    REPOSITORY,
    Process,
    aggregator,
    clean_environment,
    free_port,
    wait_ready,
    wait_until,
)


class Deployment:
    """Addresses and settings of one deployment; starts roles of it."""

    def __init__(
        self, directory: Path, bootstrap: str, topic: str, database_url: str, **settings: str
    ) -> None:
        self.directory = directory
        self.database_url = database_url
        self.gateway_port = free_port()
        self.admin_port = free_port()
        self.gateway_url = f"http://127.0.0.1:{self.gateway_port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.environment = {
            "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "AGGREGATOR_KAFKA__TOPIC": topic,
            "AGGREGATOR_KAFKA__GROUP_ID": f"group-{topic}",
            # As short as brokers allow, so that a killed worker's partitions are soon another's.
            "AGGREGATOR_KAFKA__SESSION_TIMEOUT_SECONDS": "8",
            "AGGREGATOR_KAFKA__REBALANCE_TIMEOUT_SECONDS": "6",
            "AGGREGATOR_KAFKA__HEARTBEAT_INTERVAL_SECONDS": "0.5",
            "AGGREGATOR_DATABASE__URL": database_url,
            "AGGREGATOR_INGEST__PORT": str(self.gateway_port),
            "AGGREGATOR_ADMIN__PORT": str(self.admin_port),
            "AGGREGATOR_WORKER__PORT": "0",
            **settings,
        }
        self._started = 0

    @contextlib.contextmanager
    def gateway(self) -> Iterator[Process]:
        with self._role("gateway") as process:
            wait_ready(process, self.gateway_url)
            yield process

    @contextlib.contextmanager
    def admin(self) -> Iterator[Process]:
        with self._role("admin") as process:
            wait_ready(process, self.admin_url)
            yield process

    @contextlib.contextmanager
    def worker(self) -> Iterator[Process]:
        with self._role("worker") as process:
            yield process

    @contextlib.contextmanager
    def dying_worker(self, batch: int) -> Iterator[Process]:
        """A worker that kills itself between store and commit of its n-th batch."""
        command = [sys.executable, "-m", "tests.support.dying_worker", str(batch)]
        process = Process("dying worker", command, self._log("dying"), self.environment)
        try:
            yield process
        finally:
            process.close()

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run a command of the deployment to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=REPOSITORY,
            env={**clean_environment(), **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def verify(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """The report of `aggregator verify`; fails the test, with the findings, unless it ends with `status`.

        Runs beside everything else: it joins no group and writes nothing.
        """
        report: dict[str, Any] = json.loads(self.run("verify", "--json", *arguments, status=status))
        return report

    def send(self, *arguments: str) -> dict[str, Any]:
        output = self.run("send", *arguments, "--url", self.gateway_url, "--json")
        summary: dict[str, Any] = json.loads(output)
        return summary

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.admin_url}/stats", timeout=20).raise_for_status().json()
        return answer

    def settled(self, received: int, timeout: float = 60.0) -> dict[str, Any]:
        """Statistics once this many records have their verdict."""

        def done() -> dict[str, Any] | None:
            stats = self.stats()
            return stats if stats["received"] >= received and stats["queue_depth"] == 0 else None

        return wait_until(done, timeout, f"{received} records with a verdict")

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        with psycopg.connect(self.database_url.replace("+psycopg", "")) as connection:
            return connection.execute(statement.encode()).fetchall()

    @contextlib.contextmanager
    def _role(self, role: str) -> Iterator[Process]:
        with aggregator(role, role, log=self._log(role), environment=self.environment) as process:
            yield process

    def _log(self, name: str) -> Path:
        self._started += 1
        return self.directory / f"{self._started}-{name}.log"
