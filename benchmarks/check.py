"""Whether we are still as fast as the results say that are kept in `benchmarks/results`.

Usage: python -m benchmarks.check [--rounds N]

Compared are ratios: what we do by what a limit or a floor does, measured side by side now, and measured side
by side when the result was kept. A ratio that is lower by more than the noise of such measurements fails the
check.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.machine import REPOSITORY
from benchmarks.result import RESULTS, RESULTS_VARIABLE, table

NOISE: Final = 0.2
"""The part by which a ratio may be lower than the one that was kept."""


class Ratio(NamedTuple):
    """One figure of ours, by that of a limit."""

    benchmark: str
    figure: str
    limit: str


RATIOS: Final = (
    Ratio("sink", "records_per_second", "limit: direct COPY"),
    Ratio("gateway", "events_per_second_100", "floor: bare ASGI"),
    Ratio("gateway", "events_per_second_1", "floor: bare ASGI"),
)


def main() -> None:
    """Ends with status 1 if a ratio has fallen, 2 if there is nothing to compare with."""
    rounds = _arguments().rounds
    kept = {name: _read(RESULTS / f"{name}.json") for name in {ratio.benchmark for ratio in RATIOS}}
    with tempfile.TemporaryDirectory(prefix="aggregator-benchmark-") as directory:
        now = {name: _measure(name, kept[name], Path(directory), rounds) for name in sorted(kept)}
    rows, fallen = [["", "kept", "now", "now / kept", ""]], 0
    for ratio in RATIOS:
        before, after = _value(kept[ratio.benchmark], ratio), _value(now[ratio.benchmark], ratio)
        has_fallen = after < before * (1 - NOISE)
        fallen += has_fallen
        name = f"{ratio.benchmark}: {ratio.figure} / {ratio.limit}"
        rows.append(
            [name, f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}", "FALLEN" if has_fallen else "ok"]
        )
    sys.stdout.write(
        f"\n{table(rows)}\n\nA ratio has fallen if it is below {1 - NOISE:.2f} of what was kept.\n"
    )
    sys.exit(1 if fallen else 0)


def _measure(name: str, kept: Mapping[str, Any], directory: Path, rounds: int) -> dict[str, Any]:
    contestants = [kept["reference"], *{ratio.limit for ratio in RATIOS if ratio.benchmark == name}]
    command = [sys.executable, "-m", f"benchmarks.{name}", "--rounds", str(rounds), "--write"]
    environment = {**os.environ, RESULTS_VARIABLE: str(directory)}
    subprocess.run([*command, "--only", *contestants], check=True, cwd=REPOSITORY, env=environment)
    return _read(directory / f"{name}.json")


def _value(result: Mapping[str, Any], ratio: Ratio) -> float:
    medians = {outcome["name"]: outcome["median"] for outcome in result["outcomes"]}
    try:
        return float(medians[result["reference"]][ratio.figure] / medians[ratio.limit][ratio.figure])
    except (KeyError, TypeError):
        sys.exit(f"{ratio.benchmark}: no {ratio.figure} of both `{result['reference']}` and `{ratio.limit}`.")


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        sys.stderr.write(f"There is no {path}; keep one with `python -m benchmarks.{path.stem} --write`.\n")
        sys.exit(2)
    return document


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
