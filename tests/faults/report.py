"""What each scenario did, how long recovery took and what was checked: shown at the end of every run."""

from __future__ import annotations

from dataclasses import dataclass, field


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

    def lines(self) -> list[str]:
        recovery = ", ".join(f"{seconds:.1f} s" for seconds in self.recoveries) or "-"
        return [
            f"{'ok    ' if self.passed else 'FAILED'} {self.scenario}",
            f"       injected: {'; '.join(self.injected) or '-'}",
            f"       recovery: {recovery}",
            f"       checked:  {'; '.join(self.checked) or '-'}",
        ]


reports: list[Report] = []
