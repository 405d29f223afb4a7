"""Whether memory stays flat under a steady load, and what the processes use when there is nothing to do.

Usage: python -m benchmarks.soak [--minutes N] [--rate N] [--idle-seconds N] [--write]

Gateway, worker and admin API on a real broker and a real Postgres, and `aggregator dev` beside them, each fed
at the same rate with 20 % duplicates; the admin routes are asked every few seconds. Growth is the slope of a
straight line through the last quarter of the samples: before, caches fill up (SQLite's has 64 MiB).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.machine import describe
from benchmarks.resources import used
from benchmarks.result import RESULTS, table, write
from benchmarks.servers import broker, database, work_directory
from tests.support.deployment import Deployment
from tests.support.processes import Process, aggregator, free_port, wait_ready

EVERY_S: Final = 5.0
BATCH: Final = 20
DUPLICATES: Final = 0.2


def main() -> None:
    arguments = _arguments()
    machine = describe()
    with work_directory() as directory, _roles(directory) as (roles, addresses):
        samples = _load(roles, addresses, directory, arguments.minutes * 60, arguments.rate)
        idle = _idle(roles, arguments.idle_seconds)
    figures = {name: _figures(samples[name], idle[name]) for name in roles}
    rows = [["", "MB at 1 min", "median MB", "most MB", "growth MB/h", "idle CPU %"]]
    rows += [
        [
            name,
            *(f"{one[key]:,.1f}" for key in ("early", "median", "most", "growth_per_hour", "idle_percent")),
        ]
        for name, one in figures.items()
    ]
    title = (
        f"Resident memory, {arguments.minutes:g} minutes at {arguments.rate} events/s to each of two systems"
    )
    sys.stdout.write(f"\n{title}\n\n{table(rows)}\n")
    document = {
        **machine,
        "settings": {
            "minutes": arguments.minutes,
            "rate": arguments.rate,
            "batch": BATCH,
            "duplicates": DUPLICATES,
        },
        "figures": figures,
        "samples_mb": {name: [[round(at, 1), round(mb, 2)] for at, mb in samples[name]] for name in roles},
    }
    write("soak", document, RESULTS if arguments.write else None)


@contextlib.contextmanager
def _roles(directory: Path) -> Iterator[tuple[dict[str, Process], list[tuple[str, str]]]]:
    """The processes by name, and for both systems where to publish and where to ask."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(broker(directory))
        log.create_topic("soak")
        url = stack.enter_context(stack.enter_context(database()).fresh())
        deployment = Deployment(directory, log.bootstrap, "soak", url)
        roles = {
            "gateway": stack.enter_context(deployment.gateway()),
            "worker": stack.enter_context(deployment.worker()),
            "admin": stack.enter_context(deployment.admin()),
        }
        port = free_port()
        embedded = f"http://127.0.0.1:{port}"
        command = ("dev", "--port", str(port), "--data-dir", str(directory / "embedded"))
        roles["embedded"] = stack.enter_context(aggregator("dev", *command, log=directory / "dev.log"))
        wait_ready(roles["embedded"], embedded)
        yield roles, [(deployment.gateway_url, deployment.admin_url), (embedded, embedded)]


def _load(
    roles: Mapping[str, Process],
    addresses: Sequence[tuple[str, str]],
    directory: Path,
    seconds: float,
    rate: int,
) -> dict[str, list[tuple[float, float]]]:
    """Resident megabytes of each role, with the seconds since the start."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in roles}
    events = str(int(seconds * rate / (1 + DUPLICATES)))
    with contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(
                aggregator(
                    "send",
                    *("send", "--generate", events, "--duplicates", str(DUPLICATES), "--rate", str(rate)),
                    *("--batch-size", str(BATCH), "--concurrency", "1", "--url", publish),
                    log=directory / f"send-{number}.log",
                )
            )
            for number, (publish, _) in enumerate(addresses)
        ]
        started = time.monotonic()
        with httpx.Client(timeout=30) as client:
            while any(sender.returncode is None for sender in senders):
                time.sleep(EVERY_S)
                now = time.monotonic() - started
                for name, process in roles.items():
                    samples[name].append((now, _resident_mb(process.pid)))
                for _, admin in addresses:
                    for path in ("/stats", "/events?limit=100", "/partitions", "/metrics"):
                        client.get(admin + path).raise_for_status()
                if now > seconds * 1.5:
                    raise TimeoutError("The load does not end: the machine is too slow for this rate.")
        for sender in senders:
            if sender.returncode != 0:
                raise RuntimeError(f"not everything was accepted:\n{sender.output()}")
    return samples


def _idle(roles: Mapping[str, Process], seconds: float) -> dict[str, float]:
    """Per cent of one core that each role uses with nothing to do."""
    before = {name: used(process.pid).cpu_seconds for name, process in roles.items()}
    time.sleep(seconds)
    return {
        name: 100 * (used(process.pid).cpu_seconds - before[name]) / seconds
        for name, process in roles.items()
    }


def _figures(samples: Sequence[tuple[float, float]], idle_percent: float) -> dict[str, Any]:
    later = samples[3 * len(samples) // 4 :]
    slope = statistics.linear_regression([at for at, _ in later], [mb for _, mb in later]).slope
    return {
        "early": next(mb for at, mb in samples if at >= min(60.0, samples[-1][0])),
        "median": statistics.median(mb for _, mb in samples),
        "most": max(mb for _, mb in samples),
        "growth_per_hour": slope * 3600,
        "idle_percent": idle_percent,
    }


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory under a steady load, and CPU without one.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=200, help="events per second, to each system")
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
