"""What the admin API says about verdicts, dead letters and the log, over both stores."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from sqlalchemy import Engine

from admin_api.log_view import LogView
from admin_api.settings import AdminSettings
from broker.errors import LogUnavailable, TopicMissing
from db.batch import Position
from tests.support.admin_client import Admin, ScriptedLog, admin_over, admin_queries
from tests.support.store_filler import START, StoreFiller, make_event

NOT_UTF8 = b"\xff\xfe\x00 not text"


async def test_a_dead_letter_shows_its_bytes_whatever_they_are(admin: Admin, fill: StoreFiller) -> None:
    headers = (("h", b"\xff"), ("h", None), ("ключ", "значение".encode()))
    fill.invalid(NOT_UTF8, key=b"\0key", headers=headers, timestamp_ms=2**62, error="Broken: \U0001f4a5")
    fill.invalid(b"text with \0 in it", timestamp_ms=-1)
    fill.invalid(None, reason="tombstone", timestamp_ms=1_000)
    page = (await admin.get("/dead-letters")).json()
    assert [one["value_bytes"] for one in page["dead_letters"]] == [None, 17, len(NOT_UTF8)]

    tombstone, text, binary = [
        (await admin.get(f"/dead-letters/{one['id']}")).json() for one in page["dead_letters"]
    ]

    assert (tombstone["value"], tombstone["record_timestamp"]) == (None, "1970-01-01T00:00:01Z")
    assert text["value"]["text"] == "text with \0 in it"
    assert (text["record_timestamp_ms"], text["record_timestamp"], text["key"]) == (-1, None, None)
    assert binary["value"]["text"] is None
    assert base64.b64decode(binary["value"]["base64"]) == NOT_UTF8
    assert (binary["record_timestamp_ms"], binary["record_timestamp"]) == (2**62, None)
    assert binary["key"]["text"] == "\0key"
    assert [(one["key"], one["value"] and one["value"]["text"]) for one in binary["headers"]] == [
        ("h", None),
        ("h", None),
        ("ключ", "значение"),
    ]
    assert binary["headers"][0]["value"]["base64"] == base64.b64encode(b"\xff").decode()
    assert binary["headers"][1]["value"] is None
    assert (binary["log"], binary["status"]) == (
        {"topic": "events", "partition": 0, "offset": 0, "incarnation": 1},
        "pending",
    )
    assert (await admin.get("/dead-letters/999999")).json()["code"] == "unknown_dead_letter"


async def test_dead_letters_are_filtered_and_paged(admin: Admin, fill: StoreFiller) -> None:
    for number in range(6):
        known: dict[str, Any] = {"topic": "orders", "event_id": str(number)} if number % 2 else {}
        fill.invalid(b"{", reason="schema" if number < 4 else "invalid_json", **known)

    async def offsets(query: str) -> list[int]:
        return [
            one["log"]["offset"] for one in (await admin.get(f"/dead-letters?{query}")).json()["dead_letters"]
        ]

    first = (await admin.get("/dead-letters?limit=4")).json()
    assert [one["log"]["offset"] for one in first["dead_letters"]] == [5, 4, 3, 2]
    assert await offsets(f"limit=4&cursor={first['next_cursor']}") == [1, 0]
    assert await offsets("reason=schema") == [3, 2, 1, 0]
    assert await offsets("topic=orders") == [5, 3, 1]
    assert await offsets("topic=orders&reason=invalid_json&status=pending") == [5]
    assert await offsets("status=discarded") == []
    third = first["dead_letters"][2]["created_at"]
    assert await offsets(f"since={third}") == [5, 4, 3]
    assert await offsets(f"until={third}") == [2, 1, 0]


async def test_counts_add_up_and_name_what_is_there(admin: Admin, fill: StoreFiller) -> None:
    fill.events([make_event("a"), make_event("a"), make_event("a", payload={"n": 1})])
    fill.events([make_event("a", topic="éclair"), make_event("a", topic="Zebra")], partition=1)
    fill.events([make_event("a"), make_event("b")], partition=1)
    fill.invalid(b"{", partition=1)
    fill.invalid(b"{", topic="only broken", event_id="x")

    stats = (await admin.get("/stats")).json()
    topics = (await admin.get("/topics")).json()["topics"]

    names = ("unique_processed", "duplicate_dropped", "conflicting", "dead_lettered")
    assert [stats[name] for name in names] == [4, 2, 1, 2]
    assert stats["received"] == 9
    assert (stats["topics"], stats["topics_active"]) == (["Zebra", "orders", "éclair"], 3)
    assert [one["topic"] for one in topics] == [None, "Zebra", "only broken", "orders", "éclair"]
    for name in ("received", *names):
        assert sum(one[name] for one in topics) == stats[name]
    for one in topics:
        assert one["received"] == sum(one[name] for name in names)
        assert (one["first_stored_at"] is None) == (one["unique_processed"] == 0)
    first = (await admin.get("/topics?limit=2")).json()
    assert [one["topic"] for one in first["topics"]] == [None, "Zebra"]
    rest = (await admin.get(f"/topics?limit=3&cursor={first['next_cursor']}")).json()
    assert [one["topic"] for one in rest["topics"]] == ["only broken", "orders", "éclair"]
    assert rest["next_cursor"] is None


async def test_the_backlog_is_what_the_log_holds_beyond_the_positions(
    admin: Admin, fill: StoreFiller
) -> None:
    fill.events(make_event(str(number)) for number in range(4))
    fill.events([make_event("other")], partition=1)
    # Partition 2 has no position yet; partition 1 has lost records that never got a verdict.
    admin.log.held = {0: (0, 10), 1: (3, 5), 2: (7, 9)}

    stats = (await admin.get("/stats")).json()
    partitions = (await admin.get("/partitions")).json()["partitions"]

    assert stats["queue_depth"] == 6 + 2 + 2
    assert stats["broker"] == {"status": "ok", "log_topic": "events", "partitions": 3, "detail": None}
    assert [one["lag"] for one in partitions] == [6, 2, 2]
    assert [one["next_offset"] for one in partitions] == [4, 1, None]
    assert [one["end_offset"] for one in partitions] == [10, 5, 9]
    assert [one["owner"] for one in partitions] == ["filler", "filler", None]
    assert partitions[0]["last_commit"].endswith("Z")
    admin.log.held = {0: (0, 4), 1: (0, 1)}
    assert (await admin.get("/stats")).json()["queue_depth"] == 0


async def test_a_log_that_is_down_costs_the_backlog_and_nothing_else(admin: Admin, fill: StoreFiller) -> None:
    fill.events([make_event("a")])
    for error, status in ((LogUnavailable(), "unavailable"), (TopicMissing(), "topic_missing")):
        admin.log.error = error
        answer = await admin.get("/stats")
        assert answer.status_code == 200
        stats = answer.json()
        assert (stats["queue_depth"], stats["unique_processed"]) == (None, 1)
        assert (stats["broker"]["status"], stats["broker"]["detail"]) == (status, str(error))
        partition = (await admin.get("/partitions")).json()["partitions"][0]
        assert (partition["next_offset"], partition["end_offset"], partition["lag"]) == (1, None, None)
        assert (await admin.get("/readyz")).status_code == 200
    admin.log.error = None
    admin.log.held = {0: (0, 1)}
    assert (await admin.get("/stats")).json()["queue_depth"] == 0
    assert admin.log.starts == 1


async def test_a_log_that_does_not_answer_is_waited_for_once_and_briefly() -> None:
    log = ScriptedLog({0: (0, 1)})
    view = LogView(log, "events", timeout=0.05)
    log.answering.clear()
    assert (await view.state()).status == "unavailable"
    late = await view.state()
    assert (late.status, late.offsets) == ("unavailable", None)
    assert "0.05 s" in str(late.detail)
    log.answering.set()
    async with asyncio.timeout(10):
        while (state := await view.state()).status != "ok":  # noqa: ASYNC110 - the view tells nobody
            await asyncio.sleep(0)
    assert state.offsets is not None
    log.answering.clear()
    await view.state()
    await view.close()


async def test_workers_count_while_their_heart_beats(reader: Engine, fill: StoreFiller) -> None:
    fill.store.heartbeat("worker-1", START)
    fill.store.heartbeat("worker-2", START)
    for liveness, alive in ((60.0, 2), (1e-6, 0)):
        async with admin_over(
            admin_queries(reader), AdminSettings(worker_liveness_seconds=liveness)
        ) as admin:
            assert (await admin.get("/stats")).json()["workers"] == alive


async def test_the_statistics_name_database_and_uptime(admin: Admin, reader: Engine) -> None:
    stats = (await admin.get("/stats")).json()
    assert stats["database"]["kind"] == reader.dialect.name
    assert stats["database"]["version"][0].isdigit()
    assert stats["uptime_seconds"] <= (await admin.get("/stats")).json()["uptime_seconds"] < 60
    empty = ("received", "unique_processed", "topics_active", "queue_depth", "workers")
    assert [stats[name] for name in empty] == [0] * 5


async def test_gaps_are_listed_newest_first(admin: Admin, fill: StoreFiller) -> None:
    fill.events([make_event("a")])
    position = fill.store.begin_incarnation(Position(0, 1, 1), 5, gap_from=1, gap_to=5, reason="expired")
    fill.store.begin_incarnation(position, 0, gap_from=5, gap_to=None, reason="recreated")
    first = (await admin.get("/gaps?limit=1")).json()
    second = (await admin.get(f"/gaps?limit=1&cursor={first['next_cursor']}")).json()
    assert [
        (one["reason"], one["from_offset"], one["to_offset"]) for one in first["gaps"] + second["gaps"]
    ] == [
        ("recreated", 5, None),
        ("expired", 1, 5),
    ]
    assert second["next_cursor"] is None
