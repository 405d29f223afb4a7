"""Contestants measured side by side, round by round, in one run.

What disturbs the machine for a while then disturbs all of them alike, and ratios stay meaningful where
absolute figures are not.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

Figures = Mapping[str, float]
_Stage = TypeVar("_Stage")
_FAILURES: Final = 2
"""So many failed rounds, and a contestant takes no further part."""


class LeftOut(Exception):
    """A contestant cannot take part; the text says why, and what would have to be there."""


class Contestant(Protocol):
    """Something that is measured."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, str]:
        """What it is, in which version, and what it was told; for the reader of the result."""

    def prepare(self) -> None:
        """Fetch and build what is needed. Raises LeftOut."""

    def measure(self) -> Figures:
        """Start it, measure once, stop it. Raises LeftOut if it does not do its job."""


class Staged(Generic[_Stage]):
    """A contestant on a stage that it shares with others; to be given `settings` and `measure`."""

    name: str = ""

    def __init__(self, stage: _Stage) -> None:
        self.stage = stage

    @property
    def settings(self) -> Mapping[str, str]:
        raise NotImplementedError

    def prepare(self) -> None:
        """Nothing, unless something has to be fetched."""


@dataclass
class Outcome:
    """What was measured of a contestant.

    Attributes:
        rounds: figures by name, one mapping for each round.
        failures: why single rounds have no figures.
        left_out: why it took no part, or not any longer.
    """

    name: str
    settings: Mapping[str, str]
    rounds: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: str | None = None

    def median(self, figure: str) -> float | None:
        """None if it was never measured."""
        values = [round_[figure] for round_ in self.rounds if figure in round_]
        return statistics.median(values) if values else None

    def as_json(self) -> dict[str, Any]:
        names = {name: None for round_ in self.rounds for name in round_}
        return {
            "name": self.name,
            "left_out": self.left_out,
            "failures": self.failures,
            "settings": dict(self.settings),
            "median": {name: _rounded(self.median(name)) for name in names},
            "rounds": [{name: _rounded(value) for name, value in round_.items()} for round_ in self.rounds],
        }


def run_rounds(contestants: Sequence[Contestant], rounds: int) -> list[Outcome]:
    """Measure all of them in each round; each round begins with another one."""
    outcomes = [Outcome(contestant.name, contestant.settings) for contestant in contestants]
    for contestant, outcome in zip(contestants, outcomes, strict=True):
        try:
            contestant.prepare()
        except LeftOut as error:
            _leave_out(outcome, error)
        # Versions may be known only now.
        outcome.settings = contestant.settings
    for number in range(rounds):
        first = number % len(contestants)
        for index in [*range(first, len(contestants)), *range(first)]:
            contestant, outcome = contestants[index], outcomes[index]
            if outcome.left_out is not None:
                continue
            say(f"round {number + 1} of {rounds}: {contestant.name} ...")
            try:
                figures = contestant.measure()
            except (LeftOut, AssertionError) as error:
                # The second is what test support says of a process that does not start or stop in time.
                outcome.failures.append(str(error))
                say(f"  failed: {error}")
                if len(outcome.failures) == _FAILURES:
                    _leave_out(outcome, LeftOut(outcome.failures[0]))
            else:
                outcome.rounds.append(figures)
                say("  " + ", ".join(f"{name} {value:,.6g}" for name, value in figures.items()))
    return outcomes


def say(text: str) -> None:
    """Progress, for whoever watches; results go to the standard output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _leave_out(outcome: Outcome, error: LeftOut) -> None:
    outcome.left_out = str(error)
    say(f"{outcome.name} is left out: {error}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
