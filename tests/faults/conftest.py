"""Servers and reports of the fault suite."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.faults.report import Report
from tests.faults.rig import Brokers, Database
from tests.faults.stage import Stage
from tests.support.kafka_process import KafkaMissing
from tests.support.postgres import own_server
from tests.support.skips import unavailable


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """One Kafka node behind a proxy, for the whole suite."""
    try:
        brokers = Brokers(tmp_path_factory.mktemp("fault-kafka"))
    except KafkaMissing as error:
        unavailable("kafka", str(error))
    yield brokers
    brokers.close()


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """One Postgres server behind a proxy, for the whole suite."""
    database = Database(own_server())
    yield database
    database.close()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """This scenario's line in the report at the end."""
    return Report(request.node.name)


@pytest.fixture
def stage(tmp_path: Path, report: Report, brokers: Brokers, database: Database) -> Iterator[Stage]:
    """A topic, a database and the addresses of the roles; nothing is started yet."""
    with Stage(tmp_path, report, brokers, database) as stage:
        yield stage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    if outcome.when == "call":
        given = getattr(item, "funcargs", {})
        if "report" in given:
            given["report"].passed = outcome.passed
            outcome.user_properties.append(given["report"].property())
        directory = given.get("tmp_path")
        if outcome.failed and directory is not None:
            logs = "\n".join(str(path) for path in sorted(directory.glob("*.log")))
            outcome.sections.append(("logs of the processes", logs))
    return outcome
