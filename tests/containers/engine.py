"""A container engine: the one that answers, or one of our own, started and removed by the test run."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import wait_until

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
# What a table is that has no rule: a table nobody has used yet is not listed, and would not be emptied.
_NO_RULES = {
    "filter": "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n",
    "nat": "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n",
}
_NEEDED = {"dockerd": "docker.io", "iptables-save": "iptables", "ip": "iproute2"}


class EngineMissing(Exception):
    """No engine answers, and none can be started; the text says why, and how to provide one."""


class Engine:
    """A running engine, talked to with the `docker` command.

    Attributes:
        own: whether it was started for this test run: it has no image, and its containers' processes are ours
            to kill.
    """

    def __init__(self, host: str | None, *, own: bool) -> None:
        self.own = own
        self.environment = dict(os.environ) if host is None else {**os.environ, "DOCKER_HOST": host}
        if not self._answers("buildx", "version"):
            self.environment["DOCKER_BUILDKIT"] = "0"

    def run(self, *arguments: str, timeout: float = 120, stdin: str | None = None) -> str:
        """What a `docker` command prints on its standard output; fails the test if it fails."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, (
            f"docker {' '.join(arguments)}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows about a container or an image."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", name))
        return found[0]

    def build(self, directory: Path, tag: str, *options: str, **arguments: str) -> None:
        """Build an image, with the network of this machine. `arguments` are build arguments."""
        given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
        command = ["build", "--quiet", "--network=host", "--tag", tag, *given, *options, str(directory)]
        self.run(*command, timeout=1800)

    def _answers(self, *arguments: str) -> bool:
        try:
            done = subprocess.run(
                ["docker", *arguments], env=self.environment, capture_output=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def answers(self) -> bool:
        return self._answers("version")


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    """The engine that DOCKER_HOST or the default socket leads to; else one of our own.

    Raises:
        EngineMissing: there is neither.
    """
    if shutil.which("docker") is None:
        raise EngineMissing("the command `docker` is not on the path; on Debian: apt-get install docker.io.")
    given = Engine(None, own=False)
    if given.answers():
        yield given
        return
    missing = [package for program, package in _NEEDED.items() if shutil.which(program) is None]
    if missing:
        raise EngineMissing(
            "no engine answers, and to start one there is not everything that is needed; on Debian:"
            f" apt-get install {' '.join(missing)}."
        )
    if os.geteuid() != 0:
        raise EngineMissing("no engine answers, and only root can start one.")
    with _own_engine() as engine:
        yield engine


@contextlib.contextmanager
def _own_engine() -> Iterator[Engine]:
    """`dockerd` on a socket of its own, with its data in a temporary directory; what it leaves is removed."""
    directory = Path(tempfile.mkdtemp(prefix="aggregator-engine-"))
    host = f"unix://{directory}/docker.sock"
    log = directory / "dockerd.log"
    command = [
        "dockerd",
        *("--host", host),
        *("--data-root", str(directory / "data")),
        *("--exec-root", str(directory / "exec")),
        *("--pidfile", str(directory / "docker.pid")),
        "--ip6tables=false",
    ]
    with _network_as_before(), log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_end_with_parent
        )
        try:
            engine = Engine(host, own=True)
            wait_until(
                lambda: engine.answers() or process.poll() is not None, _START_SECONDS, "dockerd to answer"
            )
            if process.poll() is not None:
                reason = log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise EngineMissing(f"dockerd does not start here: {reason}")
            yield engine
            left = engine.run("ps", "--all", "--quiet").split()
            if left:
                engine.run("rm", "--force", "--volumes", *left)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()
            process.wait()
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _network_as_before() -> Iterator[None]:
    """Afterwards, the rules of the firewall, the bridges and forwarding are what they were."""
    forwarding = [Path(f"/proc/sys/net/{name}") for name in ("ipv4/ip_forward", "ipv4/conf/all/forwarding")]
    values: Mapping[Path, str] = {path: path.read_text() for path in forwarding}
    rules = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    rules += "".join(empty for table, empty in _NO_RULES.items() if f"*{table}\n" not in rules)
    bridges = _bridges()
    try:
        yield
    finally:
        for bridge in _bridges() - bridges:
            subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)
        subprocess.run(["iptables-restore"], input=rules, check=False, capture_output=True, text=True)
        for path, value in values.items():
            path.write_text(value)


def _bridges() -> set[str]:
    shown = subprocess.run(
        ["ip", "-json", "link", "show", "type", "bridge"], check=True, capture_output=True, text=True
    )
    return {link["ifname"] for link in json.loads(shown.stdout or "[]") if link}


def _end_with_parent() -> None:
    # Asked, not killed: it has containers to end.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
