"""Real processes of the product: started, watched, stopped and killed by tests."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

REPOSITORY = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_PORTS_FROM = 12_000
_PORTS_EACH = 4_000
_port_numbers = itertools.count(os.getpid())
_T = TypeVar("_T")


class Process:
    """A child process with its output in a file; it dies with the test run, however that ends."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        directory: Path = REPOSITORY,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**clean_environment(), **environment},
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        return self._child.poll()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self, timeout: float = 25.0) -> int:
        """SIGTERM, then wait; fails the test if the process does not end in time."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> int:
        """SIGKILL, then wait."""
        self.signal(signal.SIGKILL)
        return self.wait(10.0)

    def signal(self, number: signal.Signals) -> None:
        if self._child.poll() is None:
            self._child.send_signal(number)

    def wait(self, timeout: float) -> int:
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} did not end within {timeout} s:\n{self.output()[-4000:]}"
            ) from None

    def close(self) -> None:
        """End the process, if it still runs, without asking."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait(10.0)


@contextlib.contextmanager
def aggregator(
    name: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """`aggregator <arguments>` as a process of its own."""
    process = Process(name, [sys.executable, "-m", "cli", *arguments], log, environment or {})
    try:
        yield process
    finally:
        process.close()


def free_port() -> int:
    """A port of the loopback address that nothing listens on.

    Each process of a test run takes them from a stretch of its own, below those that the system gives to
    outgoing connections: nobody else takes one before it is listened on.
    """
    first = _PORTS_FROM + _PORTS_EACH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = first + next(_port_numbers) % _PORTS_EACH
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(
    condition: Callable[[], _T | None], timeout: float, what: str, process: Process | None = None
) -> _T:
    """Ask until the condition gives something true, and return that.

    Raises:
        AssertionError: not within `timeout` seconds, or the process ended meanwhile; with its output.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        ended = process is not None and process.returncode is not None
        if ended or time.monotonic() > deadline:
            told = f"\n{process.name}:\n{process.output()[-4000:]}" if process else ""
            raise AssertionError(
                f"{'the process ended before' if ended else f'not within {timeout} s'}: {what}{told}"
            )
        time.sleep(0.02)


async def eventually(condition: Callable[[], Awaitable[_T | None]], timeout: float, what: str) -> _T:
    """`wait_until` for coroutines."""
    deadline = time.monotonic() + timeout
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        await asyncio.sleep(0.02)


def wait_ready(process: Process, base_url: str, timeout: float = 20.0) -> None:
    """Wait until `/readyz` answers 200."""

    def ready() -> bool:
        try:
            return httpx.get(f"{base_url}/readyz", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(ready, timeout, f"{base_url} ready", process)


def clean_environment() -> dict[str, str]:
    """This environment without settings of ours."""
    return {k: v for k, v in os.environ.items() if not k.startswith("AGGREGATOR_")}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
