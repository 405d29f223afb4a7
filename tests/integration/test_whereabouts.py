"""Where is my event, and what is missing from the log for good: the admin API's answers, on both stores."""

from __future__ import annotations

import asyncio

from sqlalchemy import Engine, text

from admin_api import schemas
from broker.errors import LogUnavailable
from broker.partitioner import partition_for
from db.batch import Position
from db.stats_queries import Gap, gap_sentence
from events.event import log_key
from tests.support.admin_client import Admin
from tests.support.store_filler import START, StoreFiller, make_event

PARTITIONS = 4
HOME = partition_for(log_key("orders", "lost"), PARTITIONS)
ELSEWHERE = (HOME + 1) % PARTITIONS


def holding(lags: dict[int, int]) -> dict[int, tuple[int, int]]:
    """A log in which nothing has a verdict yet, with this many records in some partitions."""
    return {number: (0, lags.get(number, 0)) for number in range(PARTITIONS)}


async def test_an_identity_never_seen_cannot_arrive_any_more_without_lag(
    admin: Admin, fill: StoreFiller
) -> None:
    fill.events([make_event("other")], partition=HOME)
    admin.log.held = holding({HOME: 1})
    answer = await admin.get("/events/orders/lost")
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["retryable"]) == (404, "unknown_event", False)
    assert problem["may_still_arrive"] is False
    assert problem["waiting"] == {
        "gateway_partition": HOME,
        "gateway_partition_lag": 0,
        "total_lag": 0,
    }
    assert "every record there has its verdict" in problem["detail"]


async def test_an_identity_never_seen_may_be_among_the_records_that_wait(admin: Admin) -> None:
    admin.log.held = holding({HOME: 7, ELSEWHERE: 5})
    problem = (await admin.get("/events/orders/lost")).json()
    assert (problem["may_still_arrive"], problem["retryable"]) == (True, True)
    assert problem["waiting"] == {"gateway_partition": HOME, "gateway_partition_lag": 7, "total_lag": 12}
    assert f"7 records wait in partition {HOME}" in problem["detail"]

    admin.log.held = holding({ELSEWHERE: 5})
    problem = (await admin.get("/events/orders/lost")).json()
    assert problem["may_still_arrive"] is True
    assert problem["waiting"] == {"gateway_partition": HOME, "gateway_partition_lag": 0, "total_lag": 5}
    assert "straight to the log" in problem["detail"]


async def test_nothing_is_promised_of_a_log_that_cannot_be_reached(admin: Admin) -> None:
    admin.log.error = LogUnavailable()
    problem = (await admin.get("/events/orders/lost")).json()
    assert (problem["may_still_arrive"], problem["waiting"]) == (None, None)
    assert (problem["code"], problem["retryable"]) == ("unknown_event", True)
    assert "cannot be reached" in problem["detail"]


async def test_an_event_stored_while_the_log_is_asked_is_found(admin: Admin, fill: StoreFiller) -> None:
    admin.log.held = holding({HOME: 1})
    admin.log.answering.clear()
    asking = asyncio.create_task(admin.get("/events/orders/lost"))
    async with asyncio.timeout(10):
        await admin.log.asked.wait()
    await asyncio.to_thread(fill.events, [make_event("lost")], partition=HOME)
    admin.log.answering.set()
    answer = await asking
    assert answer.status_code == 200
    assert answer.json()["event"]["event_id"] == "lost"


async def test_the_story_tells_what_became_of_a_dead_letter(
    admin: Admin, fill: StoreFiller, writer: Engine
) -> None:
    fill.events([make_event("e"), make_event("e"), make_event("e", payload={"n": 1})])
    with writer.begin() as connection:
        connection.execute(
            text("UPDATE dead_letters SET status = 'discarded', status_changed_by = 'ann', parent_id = 99")
        )
    told = schemas.EventWithStory.model_validate((await admin.get("/events/orders/e")).json())
    stored, conflict = told.story
    assert (stored.verdict, stored.status, stored.parent_id) == ("stored", None, None)
    assert stored.log is not None
    assert (stored.log.partition, stored.log.offset) == (0, 0)
    assert (conflict.verdict, conflict.log and conflict.log.offset) == ("conflict", 2)
    assert (conflict.status, conflict.status_changed_by, conflict.parent_id) == ("discarded", "ann", 99)
    assert conflict.replays == 0


async def test_gaps_are_shown_with_ranges_and_reasons_in_words(admin: Admin, fill: StoreFiller) -> None:
    fill.events([make_event("e")])
    second = fill.store.begin_incarnation(Position(0, 1, 1), 1500, gap_from=1, gap_to=1500, reason="expired")
    fill.store.begin_incarnation(second, 0, gap_from=1500, gap_to=None, reason="recreated")
    fill.events([make_event("f")], partition=1)

    page = schemas.GapsPage.model_validate((await admin.get("/gaps")).json())
    partitions = schemas.Partitions.model_validate((await admin.get("/partitions")).json()).partitions

    assert [(gap.from_offset, gap.to_offset, gap.reason) for gap in page.gaps] == [
        (1500, None, "recreated"),
        (1, 1500, "expired"),
    ]
    assert page.gaps[1].explanation.startswith(
        "Partition 0: offsets 1 up to 1,500 (1,499 in all) never got a verdict, because the log's retention"
    )
    assert "the log topic was deleted and created anew" in page.gaps[0].explanation
    assert [(one.partition, one.gaps, one.last_gap) for one in partitions] == [
        (0, 2, page.gaps[0]),
        (1, 0, None),
    ]


def test_every_reason_has_words() -> None:
    for reason in ("expired", "truncated", "recreated"):
        sentence = gap_sentence(Gap(1, "events", 3, 2, 10, 15, reason, START))
        assert "offsets 10 up to 15 (5 in all) never got a verdict, because the log" in sentence
        assert sentence.endswith("Found at 2026-01-31 12:00:00 UTC; incarnation 2 began.")
