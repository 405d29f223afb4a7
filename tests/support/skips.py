"""The one place that says a test cannot run here.

A skip always has a printed reason; `AGGREGATOR_TEST_REQUIRE` (comma-separated, for example
`kafka,postgres,kcat`) turns the skip for a thing that has to be there into a failure.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import pytest

REQUIRE_VARIABLE = "AGGREGATOR_TEST_REQUIRE"


def unavailable(what: str, reason: str) -> NoReturn:
    """Skip the running test because `what` is missing; fail it where `what` is required.

    Args:
        what: a name for `AGGREGATOR_TEST_REQUIRE`: kafka, postgres, kcat, confluent-kafka, docker, data,
            chromium, promtool, helm.
        reason: a sentence that says why it is missing, and how to provide it.
    """
    if what in required():
        pytest.fail(f"{what} is required by {REQUIRE_VARIABLE}, but: {reason}", pytrace=False)
    pytest.skip(f"{what}: {reason}")


def required() -> frozenset[str]:
    """What this run may not skip."""
    return frozenset(name.strip() for name in os.environ.get(REQUIRE_VARIABLE, "").split(",") if name.strip())


def summary(skipped: Iterable[pytest.TestReport]) -> list[str]:
    """One line per reason, for the end of the run. Taken from the reports, which come from every process."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in skipped
        if isinstance(report.longrepr, tuple)
    )
    return [f"{reason} ({count} skipped)" for reason, count in sorted(reasons.items())]
