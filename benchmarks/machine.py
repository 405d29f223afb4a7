"""What a figure was measured on: hardware, versions, and how busy the machine was."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
_LIBRARIES: Final = (
    "aiokafka",
    "confluent-kafka",
    "fastapi",
    "httptools",
    "msgspec",
    "orjson",
    "psycopg",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "uvloop",
)


def describe() -> dict[str, Any]:
    """The machine and the versions, to be written beside every result."""
    return {
        "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "load_average_at_start": [round(value, 2) for value in os.getloadavg()],
        "machine": {
            "processor": _first("/proc/cpuinfo", "model name") or platform.processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 1024**2, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "event-aggregator": _revision(),
            "python": platform.python_version(),
            "python_build": f"{' '.join(platform.python_build())}, {platform.python_compiler()}",
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
    }


def output_of(*command: str) -> str:
    """The first line a command prints, for versions; "unknown" if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def _revision() -> str:
    """The commit, and whether the product's code differs from it."""
    git = ("git", "-C", str(REPOSITORY))
    commit = output_of(*git, "rev-parse", "--short=10", "HEAD")
    product = ("events", "broker", "db", "ingest_api", "stream_worker", "admin_api", "telemetry", "cli")
    changed = output_of(*git, "status", "--porcelain", "--", *product) != "unknown"
    return f"{commit} with changes" if changed else commit


def _first(file: str, name: str) -> str | None:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
