"""The logs the contract holds for: each with a topic and a group of its own, four partitions, empty."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from broker.kafka import KafkaLog
from broker.local import LocalLog
from broker.ports import Log
from broker.settings import LocalLogSettings
from tests.contract.log_reader import PARTITIONS
from tests.support.faulty_log import FailingLog
from tests.support.kafka import kafka_settings


class LogUnderTest(Protocol):
    """Opens one log, as often as a test likes."""

    async def open(self) -> Log:
        """The log, closed before if it was open; what was in it is in it still."""

    async def close(self) -> None: ...


class _Local:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._log: LocalLog | None = None

    async def open(self) -> Log:
        await self.close()
        self._log = LocalLog(self._path, LocalLogSettings(partitions=PARTITIONS))
        await self._log.start()
        return self._log

    async def close(self) -> None:
        if self._log is not None:
            await self._log.stop()


class _Wrapped:
    """The log that fails on demand has to keep the contract too, as long as nothing is demanded."""

    def __init__(self, log: LogUnderTest) -> None:
        self._log = log

    async def open(self) -> Log:
        return FailingLog(await self._log.open())

    async def close(self) -> None:
        await self._log.close()


class _Kafka:
    def __init__(self, bootstrap: str) -> None:
        self._settings = kafka_settings(bootstrap)

    async def create(self) -> None:
        admin = KafkaLog(self._settings).admin()
        await admin.start()
        try:
            await admin.create(PARTITIONS, 1)
        finally:
            await admin.stop()

    async def open(self) -> Log:
        return KafkaLog(self._settings)

    async def close(self) -> None:
        """Nothing is open but what the tests have closed."""


@pytest.fixture(params=["local", "local, wrapped", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log_under_test(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogUnderTest]:
    under_test: LogUnderTest
    if request.param == "kafka":
        # Asked for only here, so that the other logs are tested where there is no broker.
        kafka = under_test = _Kafka(request.getfixturevalue("kafka_bootstrap"))
        await kafka.create()
    else:
        under_test = _Local(tmp_path / "log.db")
        if request.param == "local, wrapped":
            under_test = _Wrapped(under_test)
    yield under_test
    await under_test.close()


@pytest.fixture
async def log(log_under_test: LogUnderTest) -> Log:
    return await log_under_test.open()


@pytest.fixture
async def failing_log(log_under_test: LogUnderTest) -> FailingLog:
    return FailingLog(await log_under_test.open())
