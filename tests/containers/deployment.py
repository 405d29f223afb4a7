"""`docker-compose.yml`, run as a project of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from tests.containers.engine import Engine
from tests.support.processes import REPOSITORY, free_port, wait_until

ROLES: Final = ("gateway", "worker", "admin")
_COUNTS: Final = ("received", "unique_processed", "duplicate_dropped", "conflicting", "dead_lettered")


class ComposeProject:
    """One deployment, with ports of its own."""

    def __init__(self, engine: Engine, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """
        Args:
            environment: the variables of docker-compose.yml; also an env file, as `COMPOSE_ENV_FILES`.
        """
        ports = {
            name: free_port() for name in ("GATEWAY_PORT", "ADMIN_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
        }
        self.gateway_url = f"http://127.0.0.1:{ports['GATEWAY_PORT']}"
        self.admin_url = f"http://127.0.0.1:{ports['ADMIN_PORT']}"
        self.prometheus_url = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}"
        self._engine = engine
        self._command = [*command, "--ansi=never"]
        self.environment = {
            **engine.environment,
            "COMPOSE_PROJECT_NAME": f"aggregator-test-{os.getpid()}",
            **{name: str(port) for name, port in ports.items()},
            **environment,
        }

    def run(self, *arguments: str, timeout: float = 300, status: int = 0, **variables: str) -> str:
        """What a Compose command prints on its standard output; fails the test at any other exit status."""
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=REPOSITORY,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if done.returncode != status:
            told = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
            raise AssertionError(f"compose {' '.join(arguments)}:\n{told}\n{self.logs()}")
        return done.stdout

    def up(self, *arguments: str) -> None:
        """Start what is missing, and come back when everything is healthy."""
        self.run("up", "--wait", "--no-build", *arguments)

    def cli(self, *arguments: str) -> str:
        """Run a command of the service `cli`."""
        return self.run("run", "--rm", "--no-TTY", "--no-deps", "cli", *arguments)

    def load_test(self) -> str:
        """Run the service `loadtest` to its end; its summary."""
        return self.run("run", "--rm", "--no-TTY", "--no-deps", "loadtest")

    def secrets(self, *places: str) -> list[str]:
        """What files that the services read hold, one line each."""
        command = [
            "run",
            "--rm",
            "--no-TTY",
            "--no-deps",
            "--workdir=/etc/aggregator",
            "--entrypoint=/bin/sh",
        ]
        return self.run(*command, "cli", "-c", 'for f; do cat "$f"; echo; done', "sh", *places).splitlines()

    def containers(self, *services: str) -> list[dict[str, Any]]:
        """The engine's description of each container of these services, or of all; ended ones, too."""
        identities = self.run("ps", "--all", "--quiet", *services).split()
        return [self._engine.inspect(identity) for identity in identities]

    def logs(self) -> str:
        """The last lines of every container."""
        done = subprocess.run(
            [*self._command, "logs", "--no-color", "--tail=40"],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout

    def kill_one(self, service: str) -> str:
        """Kill a container's process as a crash would, so that the engine may start it again; its id.

        Where the processes are not on this machine, the engine is told to, and takes that for a wish.
        """
        container = self.containers(service)[0]
        if self._engine.own:
            os.kill(container["State"]["Pid"], signal.SIGKILL)
        else:
            self._engine.run("kill", container["Id"])
        identity: str = container["Id"]
        return identity

    def stats(self, key: str) -> dict[str, Any]:
        answer = httpx.get(
            f"{self.admin_url}/stats", headers={"authorization": f"Bearer {key}"}, timeout=20
        ).raise_for_status()
        stats: dict[str, Any] = answer.json()
        return stats

    def settled(self, key: str, received: int, timeout: float = 120) -> dict[str, int]:
        """The counts, once so many records have their verdict and none waits."""

        def done() -> dict[str, int] | None:
            stats = self.stats(key)
            settled = stats["received"] >= received and stats["queue_depth"] == 0
            return {name: stats[name] for name in _COUNTS} if settled else None

        return wait_until(done, timeout, f"{received} records with a verdict")

    def close(self) -> None:
        """End it, and remove its volumes."""
        self.run("--profile=*", "down", "--volumes", "--remove-orphans", "--timeout=5")
