"""Fixtures of every suite; each comes from the support module that provides its server."""

from __future__ import annotations

import pytest

from tests.faults.report import found_in, write_if_wanted
from tests.support import skips
from tests.support.kafka import kafka_bootstrap, kafka_process, kafka_topic
from tests.support.postgres import (
    empty_postgres_url,
    postgres_server,
    postgres_template,
    postgres_url,
    sqlite_template,
    sqlite_url,
    store_url,
)

__all__ = [
    "empty_postgres_url",
    "kafka_bootstrap",
    "kafka_process",
    "kafka_topic",
    "postgres_server",
    "postgres_template",
    "postgres_url",
    "sqlite_template",
    "sqlite_url",
    "store_url",
]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    scenarios = found_in(outcomes)
    if scenarios:
        terminalreporter.section("Fault scenarios")
        for scenario in scenarios:
            for line in scenario.lines():
                terminalreporter.write_line(line)
        write_if_wanted(scenarios)
    lines = skips.summary(terminalreporter.stats.get("skipped", []))
    if lines:
        terminalreporter.section("Not available here, and therefore skipped")
        for line in lines:
            terminalreporter.write_line(line)
