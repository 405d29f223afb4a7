"""As many requests as a server takes, over a fixed number of connections, with wrk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.rounds import LeftOut
from benchmarks.servers import run

CONNECTIONS: Final = 32
_SCRIPT: Final = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Load:
    """What wrk counted. Requests cut off at its end are not among these."""

    seconds: float
    requests: int
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float


def require_wrk() -> None:
    """Raises LeftOut."""
    if shutil.which("wrk") is None:
        raise LeftOut("`wrk` is not installed; on Debian and Ubuntu: apt-get install wrk")


def write_bodies(file: Path, bodies: Iterable[bytes]) -> None:
    """The file that `press` takes bodies from."""
    with file.open("wb") as output:
        for body in bodies:
            output.write(b"%d\n%b" % (len(body), body))


def press(url: str, bodies: Path, content_type: str, seconds: int) -> Load:
    """Send for so many seconds. Raises LeftOut if wrk fails."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "--timeout", "30s", "-s", str(_SCRIPT), url]
    printed = run([*command, "--", str(bodies), content_type], timeout=seconds + 60)
    return Load(**json.loads(printed.strip().splitlines()[-1]))
