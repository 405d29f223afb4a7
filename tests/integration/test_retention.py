"""Retention: whole days go, identities later, counters stay exact, and verify still agrees."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from typer.testing import CliRunner

import cli.reconciliation
from broker.local import LocalLog
from broker.settings import LocalLogSettings
from cli.main import app
from db.engine import transaction
from db.errors import StoreUnavailable
from db.partitions import ensure_partitions
from db.queries import StoreQueries
from db.retention import remove_expired
from db.retention_queries import Retention, retention
from db.settings import RetentionSettings
from tests.support.reconciled import Reconciled, everything, record
from tests.support.store_filler import StoreFiller, make_event, open_store

DAY = dt.timedelta(days=1)


@pytest.fixture(autouse=True)
def no_waiting_for_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.reconciliation, "SETTLE_SECONDS", 0.0)


@pytest.fixture
async def system(store_url: str, tmp_path: Path) -> AsyncIterator[Reconciled]:
    """Log and store after a few records of every kind: 40 events, all stored ten days ago."""
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=3))
    await log.start()
    system = Reconciled(log, store_url)
    await system.fill(everything())
    age(system, 10)
    yield system
    system.close()
    await log.stop()


def age(system: Reconciled, days: int, *, where: str = "true") -> None:
    """Make events and their identities older, as if they had been stored so many days ago."""
    ago = f"interval '{days} days'" if system.on_postgres else f"{days * 86_400_000_000}"
    system.tamper(
        f"UPDATE event_keys SET stored_at = stored_at - {ago} WHERE seq IN"
        f" (SELECT seq FROM events WHERE {where})",
        f"UPDATE events SET stored_at = stored_at - {ago} WHERE {where}",
    )
    ensure_partitions(system.engine)


def removed_so_far(system: Reconciled) -> Retention:
    with transaction(system.engine) as connection:
        return retention(connection)


def rows(system: Reconciled) -> tuple[int, int]:
    """Events and identities there are."""
    return (
        system.value("SELECT count(*) FROM events"),
        system.value("SELECT count(*) FROM event_keys"),
    )


async def test_without_settings_everything_is_kept(system: Reconciled) -> None:
    removed = remove_expired(system.engine, RetentionSettings())

    assert (removed.events, removed.identities) == (0, 0)
    assert rows(system) == (40, 40)
    assert removed_so_far(system) == Retention()


async def test_events_of_old_days_go_and_their_identities_stay(system: Reconciled) -> None:
    await system.fill([record(f"new {n}") for n in range(5)])

    removed = remove_expired(system.engine, RetentionSettings(events_days=9, identities_days=30))

    assert (removed.events, removed.identities, removed.complete) == (40, 0, True)
    assert rows(system) == (5, 45)
    report = await system.check()
    assert (report.findings, report.ok) == ([], True)


async def test_what_is_a_day_too_young_stays(system: Reconciled) -> None:
    age(system, 1, where="event_id < 'e2'")

    removed = remove_expired(system.engine, RetentionSettings(events_days=10))

    gone = sum(f"e{n}" < "e2" for n in range(40))
    assert removed.events == gone
    assert rows(system)[0] == 40 - gone


async def test_a_copy_of_a_removed_event_is_a_duplicate_while_its_identity_is_kept(
    system: Reconciled,
) -> None:
    remove_expired(system.engine, RetentionSettings(events_days=5, identities_days=30))

    await system.fill([record("e1", n=1)])

    assert rows(system) == (0, 40)
    assert system.value("SELECT sum(duplicate) FROM verdict_counts") == 11
    assert (await system.check()).findings == []


async def test_a_copy_that_comes_after_the_deduplication_window_is_stored_anew(system: Reconciled) -> None:
    removed = remove_expired(
        system.engine, RetentionSettings(events_days=5, identities_days=5), keys_per_step=7
    )
    assert (removed.events, removed.identities, removed.complete) == (40, 40, True)

    await system.fill([record("e1", n=1)])

    assert rows(system) == (1, 1)
    assert system.value("SELECT sum(stored) FROM verdict_counts") == 41
    assert removed_so_far(system).identities.removed == 40


async def test_verify_says_which_records_it_could_not_compare(system: Reconciled) -> None:
    later = dt.datetime.now(dt.UTC) + 40 * DAY
    remove_expired(system.engine, RetentionSettings(events_days=5, identities_days=5), clock=lambda: later)

    report = await system.check()

    assert report.findings == []
    assert [note for note in report.notes if "50 records of the log are older than the identities" in note]


async def test_verify_still_finds_what_retention_has_not_removed(system: Reconciled) -> None:
    await system.fill([record(f"new {n}") for n in range(5)])
    remove_expired(system.engine, RetentionSettings(events_days=5, identities_days=30))

    system.tamper("DELETE FROM events WHERE event_id = 'new 1'")

    assert await system.found() == {"stored_counter", "key_count", "key_without_event"}


async def test_a_second_run_on_the_same_day_finds_nothing_to_do(system: Reconciled) -> None:
    settings = RetentionSettings(events_days=5, identities_days=6)
    remove_expired(system.engine, settings)

    again = remove_expired(system.engine, settings)

    assert (again.events, again.identities, again.complete) == (0, 0, True)


async def test_a_run_that_is_stopped_between_two_steps_is_finished_by_the_next(system: Reconciled) -> None:
    settings = RetentionSettings(events_days=5, identities_days=5)
    asked: list[bool] = []

    def stopping() -> bool:
        asked.append(True)
        return len(asked) > 3

    first = remove_expired(system.engine, settings, is_stopping=stopping, keys_per_step=5)
    second = remove_expired(system.engine, settings, keys_per_step=5)

    assert (first.complete, second.complete) == (False, True)
    assert first.identities + second.identities == 40
    assert rows(system) == (0, 0)
    assert (await system.check(counts_only=True)).findings == []


async def test_runs_beside_each_other_remove_everything_once(system: Reconciled) -> None:
    settings = RetentionSettings(events_days=5, identities_days=5)

    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: remove_expired(system.engine, settings, keys_per_step=5), range(3)))
    remove_expired(system.engine, settings)

    assert sum(run.events for run in runs) == 40
    so_far = removed_so_far(system)
    assert (so_far.events.removed, so_far.identities.removed, so_far.identities.is_complete) == (40, 40, True)


async def test_the_story_of_a_removed_event_says_when_it_was_stored(system: Reconciled) -> None:
    remove_expired(system.engine, RetentionSettings(events_days=5, identities_days=30))

    story = StoreQueries.of(
        system.engine, system.log.topic, timeout=10, max_page_bytes=1_000_000
    ).events.story("orders", "e1")

    assert story is not None
    assert story.event is None
    assert [entry.verdict for entry in story.story] == ["stored"]


@pytest.mark.postgres
async def test_a_table_in_use_is_left_for_the_next_run(postgres_url: str, tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log.db", LocalLogSettings(partitions=3))
    await log.start()
    system = Reconciled(log, postgres_url)
    await system.fill(everything())
    age(system, 10)
    settings = RetentionSettings(events_days=5)
    with system.engine.connect() as reader, reader.begin():
        reader.execute(text("SELECT count(*) FROM events"))
        with pytest.raises(StoreUnavailable):
            remove_expired(system.engine, settings)
        assert rows(system) == (40, 40)

    assert remove_expired(system.engine, settings).events == 40
    system.close()
    await log.stop()


@pytest.mark.parametrize("given", [{"identities_days": 5}, {"events_days": 6, "identities_days": 5}])
def test_identities_are_never_kept_shorter_than_events(given: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="identities_days must not be below events_days"):
        RetentionSettings.model_validate(given)


def test_the_command_says_what_it_removed(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGGREGATOR_DATABASE__URL", store_url)
    monkeypatch.setenv("AGGREGATOR_RETENTION__EVENTS_DAYS", "3")
    engine = open_store(store_url)
    StoreFiller(engine).events([make_event("old"), make_event("older")])
    ago = "interval '9 days'" if engine.dialect.name == "postgresql" else "777600000000"
    with transaction(engine) as connection:
        connection.execute(text(f"UPDATE events SET stored_at = stored_at - {ago}"))
    engine.dispose()

    said = CliRunner().invoke(app, ["retention", "run"])
    again = CliRunner().invoke(app, ["retention", "run", "--json"])

    assert said.exit_code == 0, said.output
    assert ": 2 removed" in said.output
    assert json.loads(again.output)["events"] == 0


def test_the_command_without_a_setting_says_which_one_to_set() -> None:
    said = CliRunner().invoke(app, ["retention", "run"])

    assert said.exit_code == 2
    assert "AGGREGATOR_RETENTION__EVENTS_DAYS is not set" in said.output
