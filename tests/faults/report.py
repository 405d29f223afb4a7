"""What each scenario did, how long recovery took and what was checked: shown at the end of every run.

`AGGREGATOR_TEST_REPORT` names a file that gets the same as JSON; `python -m tests.faults.report FILE …` makes
the table of the documentation out of such files, with the shortest and the longest recovery in all of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

PROPERTY: Final = "scenario"
FILE_VARIABLE: Final = "AGGREGATOR_TEST_REPORT"


@dataclass
class Report:
    """One scenario's line.

    Attributes:
        recoveries: seconds from each healing until the backlog of that moment had its verdicts.
        checked: figures that the invariants were checked against.
    """

    scenario: str
    injected: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    passed: bool = False

    def property(self) -> tuple[str, dict[str, Any]]:
        """What travels with pytest's own report, also from another process."""
        return PROPERTY, asdict(self)

    def lines(self) -> list[str]:
        recovery = ", ".join(f"{seconds:.1f} s" for seconds in self.recoveries) or "-"
        return [
            f"{'ok    ' if self.passed else 'FAILED'} {self.scenario}",
            f"       injected: {'; '.join(self.injected) or '-'}",
            f"       recovery: {recovery}",
            f"       checked:  {'; '.join(self.checked) or '-'}",
        ]


def found_in(outcomes: Iterable[pytest.TestReport]) -> list[Report]:
    """The scenarios of a run."""
    return [
        Report(**value)  # type: ignore[arg-type]
        for outcome in outcomes
        if outcome.when == "call"
        for name, value in outcome.user_properties
        if name == PROPERTY
    ]


def write_if_wanted(reports: list[Report]) -> None:
    """Write the reports to the file that the environment names."""
    path = os.environ.get(FILE_VARIABLE)
    if path:
        Path(path).write_text(json.dumps([asdict(report) for report in reports], indent=1))


def table(paths: Iterable[Path]) -> Iterator[str]:
    """The rows of the documentation's table, from the files of several runs."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for report in json.loads(path.read_text()):
            runs.setdefault(report["scenario"], []).append(report)
    yield "| scenario | what is done | recovery in s |"
    yield "|---|---|---|"
    for scenario, reports in runs.items():
        name = scenario.removeprefix("test_").replace("_", " ")
        seconds = sorted(second for report in reports for second in report["recoveries"])
        span = " to ".join(dict.fromkeys(f"{second:.1f}" for second in (seconds[:1] + seconds[-1:]))) or "-"
        yield f"| {name} | {'; '.join(dict.fromkeys(reports[0]['injected']))} | {span} |"


if __name__ == "__main__":
    print("\n".join(table(map(Path, sys.argv[1:]))))  # noqa: T201
