"""Hostile records, from real producers through the worker into both stores: each gets the verdict it has to
get, and none costs a neighbour anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.kafka import KafkaLog
from cli.reconciliation import Report
from db.dead_letter_queries import DeadLetter
from db.event_filter import DeadLetterFilter
from tests.support.admin_client import admin_queries
from tests.support.hostile_log import (
    ABORTED_TOPIC,
    NUL_IN_HEADER_KEY,
    UNREADABLE,
    HostileLog,
    Written,
    event_id_of,
    odd_records,
    write_hostile_log,
)
from tests.support.kafka_process import KafkaCluster
from tests.support.postgres import create_database, drop_database
from tests.support.reconciled import Reconciled
from tests.support.store_filler import open_store
from tests.support.tables import Place, PostgresStore, SqliteStore, Tables

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

RECORDS = odd_records()
REFUSED = [*(name for name, record in RECORDS.items() if record.get("reason")), NUL_IN_HEADER_KEY]
STORED = [name for name, record in RECORDS.items() if not record.get("reason")]


@dataclass(frozen=True)
class Judged:
    """The log, and what a worker made of it."""

    log: HostileLog
    tables: Tables
    letters: dict[Place, DeadLetter]
    report: Report

    def letter(self, written: Written) -> DeadLetter | None:
        return self.letters.get(place(written))


def place(written: Written) -> Place:
    return Place(written.partition, 1, written.offset)


@pytest.fixture(scope="module")
def hostile_log(kafka_process: KafkaCluster) -> HostileLog:
    return write_hostile_log(kafka_process.brokers[0])


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def judged(
    request: pytest.FixtureRequest, hostile_log: HostileLog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Judged]:
    """One worker's verdicts on the whole log, on each of the stores."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("hostile") / "store.db"
        path.write_bytes(Path(request.getfixturevalue("sqlite_template")).read_bytes())
        yield judge(hostile_log, f"sqlite:///{path}", SqliteStore(path))
        return
    server = request.getfixturevalue("postgres_server")
    url = create_database(server.url, "hostile_records", request.getfixturevalue("postgres_template"))
    try:
        yield judge(hostile_log, url, PostgresStore(url))
    finally:
        drop_database(server.url, "hostile_records")


def judge(log: HostileLog, store_url: str, store: SqliteStore | PostgresStore) -> Judged:
    settings = log.settings.model_copy(update={"group_id": f"hostile-{store_url.partition(':')[0]}"})

    async def work() -> Report:
        reconciled = Reconciled(KafkaLog(settings), store_url)
        try:
            async with reconciled.working():
                await reconciled.caught_up()
            return await reconciled.check()
        finally:
            reconciled.close()

    report = asyncio.run(work())
    engine = open_store(store_url, read_only=True)
    try:
        queries = admin_queries(engine).dead_letters
        page = queries.page(DeadLetterFilter(), limit=1_000)
        letters = [queries.show(summary.id) for summary in page.dead_letters]
    finally:
        engine.dispose()
    places = {Place(d.summary.log.partition, 1, d.summary.log.offset): d for d in letters if d is not None}
    assert len(places) == len(letters)
    return Judged(log, store.tables(), places, report)


@pytest.mark.parametrize("name", REFUSED)
def test_record_that_is_no_event_is_a_dead_letter_with_its_reason_and_all_its_bytes(
    name: str, judged: Judged
) -> None:
    written = judged.log.odd[name]
    letter = judged.letter(written)
    assert letter is not None
    assert letter.summary.reason == written.reason
    assert letter.summary.error.endswith(".")
    assert (letter.value.base64 if letter.value else None) == written.value
    assert (letter.key.base64 if letter.key else None) == written.key
    assert letter.headers is not None
    kept = [(h.key, h.value.base64 if h.value else None) for h in letter.headers]
    assert kept == list(written.headers)
    if written.timestamp is not None:
        assert letter.record_timestamp_ms == written.timestamp
        assert letter.record_timestamp is None


@pytest.mark.parametrize("name", STORED)
def test_unusual_record_that_holds_an_event_is_stored(name: str, judged: Judged) -> None:
    written = judged.log.odd[name]
    assert written.value is not None
    assert judged.letter(written) is None
    (event,) = [event for event, where in judged.tables.events if where == place(written)]
    assert event.event_id == event_id_of(written.value)


@pytest.mark.parametrize("name", UNREADABLE)
def test_record_that_cannot_be_read_is_a_dead_letter_with_its_place(name: str, judged: Judged) -> None:
    letter = judged.letter(judged.log.odd[name])
    assert letter is not None
    assert letter.summary.reason == "undecodable_record"
    assert (letter.key, letter.value) == (None, None)


def test_every_neighbour_is_stored(judged: Judged) -> None:
    stored = {where: event.event_id for event, where in judged.tables.events}
    lost = [good for good in judged.log.good if stored.get(place(good)) != event_id_of(good.value or b"")]
    assert not lost


def test_aborted_records_have_no_verdict(judged: Judged) -> None:
    assert ABORTED_TOPIC not in {event.topic for event, _ in judged.tables.events}
    assert b"aborted" not in {letter.key for letter in judged.tables.letters}
    verdicts = {where for _, where in judged.tables.events} | judged.letters.keys()
    assert verdicts == {place(written) for written in judged.log.everything}


def test_no_partition_is_stuck(judged: Judged) -> None:
    assert {p: offset for p, (_, offset) in judged.tables.positions.items()} == judged.log.ends
    assert not judged.tables.gaps


def test_counters_are_exact(judged: Judged) -> None:
    counted: Counter[str] = Counter()
    for counts in judged.tables.counts.values():
        counted.update(counts._asdict())
    refused = len(REFUSED) + len(UNREADABLE)
    assert +counted == Counter(
        received=len(judged.log.everything),
        stored=len(judged.log.everything) - refused,
        dead_lettered=refused,
    )


def test_log_and_store_agree(judged: Judged) -> None:
    assert judged.report.findings == []
