"""Replaying and discarding dead letters end to end: log, worker, store and HTTP, on both stores."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from broker.errors import LogFull, LogUnavailable, ProduceOutcomeUnknown
from db.dead_letter_store import DeadLetterStore
from db.errors import StoreUnavailable
from db.event_filter import DeadLetterFilter
from tests.support.admin_client import admin_over, admin_queries
from tests.support.processes import eventually
from tests.support.producer import MemoryProducer
from tests.support.replay_stage import ReplayStage, event, replay_stage
from tests.support.store_filler import StoreFiller, open_store


@pytest.fixture
async def idle(writer: Engine, reader: Engine, tmp_path: Path) -> AsyncIterator[ReplayStage]:
    """Everything but an admin process."""
    async with replay_stage(tmp_path, writer, reader) as stage:
        yield stage


@pytest.fixture
async def stage(idle: ReplayStage) -> AsyncIterator[ReplayStage]:
    async with idle.admin():
        yield idle


async def only(stage: ReplayStage, query: str = "") -> dict[str, Any]:
    (letter,) = await stage.letters(query)
    return letter


async def test_an_edited_event_is_stored_and_every_counter_is_exact(stage: ReplayStage) -> None:
    await stage.append(b"{broken", event("1"))
    assert await stage.settled(2) == (2, 1, 0, 0, 1)
    letter = await only(stage)

    answer = await stage.client.post(
        f"/dead-letters/{letter['id']}/replay",
        content=b'{"topic":"orders", "event_id":"2","timestamp":"2026-01-31T12:00:00Z",'
        b'"source":"shop","payload":{"total": 1.50}}',
        headers={b"content-type": b"application/json", b"x-actor": "Zoë".encode()},
    )

    assert answer.status_code == 200, answer.text
    assert (answer.json()["status"], answer.json()["replays"]) == ("replayed", 1)
    assert answer.json()["status_changed_by"] == "Zoë"
    assert await stage.settled(3) == (3, 2, 0, 0, 1)
    assert '{"total": 1.50}' in (await stage.client.get("/events/orders/2")).text
    shown = await stage.get(f"/dead-letters/{letter['id']}")
    assert base64.b64decode(shown["value"]["base64"]) == b"{broken"
    assert '"event_id":"2"' in shown["replayed_value"]["text"]
    (entry,) = (await stage.get(f"/audit?dead_letter_id={letter['id']}"))["entries"]
    assert (entry["actor"], entry["action"]) == ("Zoë", "dead_letter.replay")
    assert entry["detail"] == {"attempt": 1, "edited": True}


async def test_a_replay_that_fails_again_is_a_new_dead_letter_that_names_its_parent(
    stage: ReplayStage,
) -> None:
    await stage.append(
        b"{broken", key=b"\xff", headers=(("traceparent", b"00-1"), ("h", None), ("ingress", b"http"))
    )
    await stage.settled(1)
    parent = await only(stage)

    assert (await stage.post(f"/dead-letters/{parent['id']}/replay")).status_code == 200

    assert await stage.settled(2) == (2, 0, 0, 0, 2)
    child = await only(stage, "&status=pending")
    assert (child["parent_id"], child["reason"]) == (parent["id"], "invalid_json")
    shown = await stage.get(f"/dead-letters/{child['id']}")
    assert [(h["key"], h["value"] and h["value"]["text"]) for h in shown["headers"]] == [
        ("traceparent", "00-1"),
        ("h", None),
        ("replay_of", str(parent["id"])),
        ("ingress", "replay"),
    ]
    assert base64.b64decode(shown["key"]["base64"]) == b"\xff"
    assert (await stage.get(f"/dead-letters/{parent['id']}"))["children"] == [child["id"]]
    # Of the next generation the parent is the child, not the child's parent.
    assert (await stage.post(f"/dead-letters/{child['id']}/replay")).status_code == 200
    await stage.settled(3)
    assert (await only(stage, "&status=pending"))["parent_id"] == child["id"]


async def test_a_conflict_shows_both_contents_and_replayed_unchanged_is_one_again(stage: ReplayStage) -> None:
    await stage.append(event("1"), event("1", source="web", payload={"n": 2, "x": [1]}))
    assert await stage.settled(2) == (2, 1, 0, 1, 0)
    letter = await only(stage)

    conflict = (await stage.get(f"/dead-letters/{letter['id']}"))["conflict"]

    assert conflict["stored"]["payload"] == {"n": 1}
    assert conflict["rejected"] == {
        "timestamp": "2026-01-31T12:00:00Z",
        "source": "web",
        "payload": {"n": 2, "x": [1]},
    }
    assert [(c["path"], c["change"], c["stored"], c["rejected"]) for c in conflict["difference"]] == [
        ("/source", "changed", "shop", "web"),
        ("/payload/n", "changed", 1, 2),
        ("/payload/x", "added", None, [1]),
    ]
    assert (await stage.post(f"/dead-letters/{letter['id']}/replay")).status_code == 200
    assert await stage.settled(3) == (3, 1, 0, 2, 0)
    again = await only(stage, "&status=pending")
    assert (again["reason"], again["parent_id"]) == ("conflicting_duplicate", letter["id"])


async def test_of_many_replays_at_once_one_is_done_and_the_others_are_refused(stage: ReplayStage) -> None:
    await stage.append(b"{broken")
    await stage.settled(1)
    letter = await only(stage)
    path = f"/dead-letters/{letter['id']}"

    answers = await asyncio.gather(*(stage.post(f"{path}/replay") for _ in range(8)))

    assert sorted(a.status_code for a in answers) == [200] + [409] * 7
    refused = next(a for a in answers if a.status_code == 409)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "wrong_status"
    late = await stage.post(f"{path}/discard")
    assert (late.status_code, late.json()["dead_letter_status"]) == (409, "replayed")
    assert await stage.settled(2) == (2, 0, 0, 0, 2)
    assert len((await stage.get("/audit"))["entries"]) == 1


async def test_a_discarded_dead_letter_stays_and_is_never_replayed(stage: ReplayStage) -> None:
    await stage.append(b"{broken")
    await stage.settled(1)
    path = f"/dead-letters/{(await only(stage))['id']}"
    done = await stage.post(f"{path}/discard", None, **{"x-actor": "ann"})
    assert (done.status_code, done.json()["status"]) == (200, "discarded")
    assert (await stage.post(f"{path}/replay")).status_code == 409
    assert (await stage.post(f"{path}/discard")).status_code == 409
    assert (await stage.get(path))["value"]["text"] == "{broken"
    assert await stage.settled(1) == (1, 0, 0, 0, 1)
    (entry,) = (await stage.get("/audit"))["entries"]
    assert (entry["actor"], entry["action"]) == ("ann", "dead_letter.discard")


@pytest.mark.parametrize("landed", [True, False])
async def test_an_unknown_outcome_is_recorded_and_repeated_without_storing_twice(
    stage: ReplayStage, landed: bool
) -> None:
    await stage.append(b"{broken")
    await stage.settled(1)
    path = f"/dead-letters/{(await only(stage))['id']}"
    edited = {
        "topic": "t",
        "event_id": "1",
        "timestamp": "2026-01-31T12:00:00Z",
        "source": "s",
        "payload": {},
    }
    stage.log.fail("publish", ProduceOutcomeUnknown(), after=landed)

    first = await stage.post(f"{path}/replay", edited)

    assert (first.status_code, first.json()["code"]) == (503, "outcome_unknown")
    assert int(first.headers["retry-after"]) >= 1
    assert (await stage.get(path))["status"] == "replay_unknown"
    second = await stage.post(f"{path}/replay", edited)
    assert (second.status_code, second.json()["replays"]) == (200, 2)
    assert await stage.settled(2 + landed) == (2 + landed, 1, int(landed), 0, 1)


async def test_a_log_that_is_full_leaves_the_dead_letter_as_it_was(stage: ReplayStage) -> None:
    await stage.append(b"{broken")
    await stage.settled(1)
    path = f"/dead-letters/{(await only(stage))['id']}"
    stage.log.fail("publish", LogFull())
    refused = await stage.post(f"{path}/replay")
    assert (refused.status_code, refused.json()["code"]) == (503, "log_full")
    assert (await stage.get(path))["status"] == "pending"


async def test_without_a_log_nothing_is_changed_and_it_is_said_when_to_come_back(
    writer: Engine, reader: Engine, fill: StoreFiller
) -> None:
    fill.invalid(b"{")
    producer = MemoryProducer()
    producer.fail_start(*[LogUnavailable("no broker")] * 2)
    async with admin_over(admin_queries(reader), writer=writer, producer=producer) as admin:
        answer = await admin.client.post("/dead-letters/1/replay")
        assert (answer.status_code, answer.json()["code"]) == (503, "log_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        shown = (await admin.get("/dead-letters/1")).json()
        assert (shown["status"], shown["replays"]) == ("pending", 0)
        assert (await admin.client.post("/dead-letters/1/discard")).status_code == 200
        assert (await admin.get("/audit")).json()["count"] == 1

        async def connected() -> bool:
            return (await admin.client.post("/dead-letters/1/replay")).status_code == 409

        await eventually(connected, 20, "the log to be connected to")
    assert producer.records == []


async def test_a_crash_between_log_and_store_loses_nothing_and_stores_once(
    idle: ReplayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after the log has the record and before its status is noted."""

    def die(*_: object) -> bool:
        raise StoreUnavailable

    await idle.append(b"{broken")
    await idle.settled(1)
    async with idle.admin():
        path = f"/dead-letters/{(await only(idle))['id']}"
        edited = {
            "topic": "t",
            "event_id": "1",
            "timestamp": "2026-01-31T12:00:00Z",
            "source": "s",
            "payload": {},
        }
        with monkeypatch.context() as patch:
            patch.setattr(DeadLetterStore, "end_replay", die)
            answer = await idle.post(f"{path}/replay", edited)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert (await idle.get(path))["status"] == "replaying"
        assert (await idle.post(f"{path}/replay")).status_code == 409
        assert await idle.settled(2) == (2, 1, 0, 0, 1)
    async with idle.admin():

        async def given_up() -> bool:
            return bool((await idle.get(path))["status"] == "replay_unknown")

        await eventually(given_up, 20, "the new process to notice")
        assert (await idle.post(f"{path}/replay", edited)).status_code == 200
        assert await idle.settled(3) == (3, 1, 1, 0, 1)


async def test_everything_that_matches_is_replayed_up_to_the_limit_after_a_dry_run(
    stage: ReplayStage,
) -> None:
    broken = [b"{%d" % number for number in range(500)]
    await stage.append(*broken, b"[]", b"[]")
    assert await stage.settled(502) == (502, 0, 0, 0, 502)
    ask = {"kind": "replay", "filter": {"reason": "invalid_json"}, "limit": 450}

    dry = await stage.post("/dead-letters/operations", {**ask, "dry_run": True})
    assert (dry.status_code, dry.json()["matching"]) == (202, 500)
    rehearsed = await stage.finished(dry.json()["id"])
    assert (rehearsed["done"], rehearsed["status"]) == (450, "completed")
    assert await stage.settled(502) == (502, 0, 0, 0, 502)

    created = await stage.post("/dead-letters/operations", ask, **{"x-actor": "ann"})
    done = await stage.finished(created.json()["id"])

    figures = ("done", "skipped", "failed", "unknown", "progress", "requested_by")
    assert [done[name] for name in figures] == [450, 0, 0, 0, 1.0, "ann"]
    # Each counts once more; what failed again is pending, and was not replayed by the same operation.
    assert await stage.settled(952) == (952, 0, 0, 0, 952)
    replayed = await stage.letters("&status=replayed")
    assert len(replayed) == 450
    assert {letter["operation_id"] for letter in replayed} == {done["id"]}
    children = [one for one in await stage.letters() if one["parent_id"] is not None]
    assert sorted(one["parent_id"] for one in children) == [one["id"] for one in replayed]
    groups = {g["reason"]: g["statuses"] for g in (await stage.get("/dead-letters/groups"))["groups"]}
    assert groups == {"invalid_json": {"pending": 500, "replayed": 450}, "schema": {"pending": 2}}
    actions = [(e["actor"], e["action"]) for e in (await stage.get("/audit"))["entries"]]
    assert actions[:2] == [
        ("ann", "dead_letter_operation.end"),
        ("ann", "dead_letter_operation.create"),
    ]


async def test_an_operation_goes_on_after_a_stop_where_it_was(
    idle: ReplayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admin_api.operation_runner._LETTERS", 5)
    await idle.append(*[b"{"] * 40)
    await idle.settled(40)
    async with idle.admin():
        created = await idle.post("/dead-letters/operations", {"kind": "discard", "filter": {}})
        number = created.json()["id"]

        async def begun() -> bool:
            return bool((await idle.get(f"/dead-letters/operations/{number}"))["done"])

        await eventually(begun, 20, "the operation to begin")
    async with idle.admin():
        done = await idle.finished(number)
    assert (done["done"], done["status"], done["progress"]) == (40, "completed", 1.0)
    (group,) = idle.queries.dead_letters.groups(DeadLetterFilter())
    assert group.statuses == {"discarded": 40}


async def test_an_operation_waits_for_the_log_and_counts_what_is_unknown(stage: ReplayStage) -> None:
    await stage.append(*[event(str(n), timestamp="yesterday") for n in range(10)])
    await stage.settled(10)
    for call in (1, 2, 3):
        stage.log.fail("publish", LogUnavailable(), call=call, after=call == 1)
    stage.log.fail("publish", LogFull(), call=4)
    created = await stage.post("/dead-letters/operations", {"kind": "replay", "filter": {}})
    done = await stage.finished(created.json()["id"])
    assert (done["done"], done["unknown"], done["failed"], done["status"]) == (7, 3, 0, "completed")
    # One of the three was in the log after all.
    assert await stage.settled(18) == (18, 0, 0, 0, 18)
    assert len(await stage.letters("&status=replay_unknown")) == 3
    retry = {"kind": "replay", "filter": {"status": "replay_unknown"}}
    again = await stage.finished((await stage.post("/dead-letters/operations", retry)).json()["id"])
    assert again["done"] == 3
    assert await stage.letters("&status=replay_unknown") == []


async def test_a_cancelled_operation_is_left_half_done(
    writer: Engine, reader: Engine, fill: StoreFiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admin_api.operation_runner._LETTERS", 2)
    fill.records([(None, {"value": b"{", "reason": "schema"})] * 6)
    producer = MemoryProducer()
    producer.gate.clear()
    async with admin_over(admin_queries(reader), writer=writer, producer=producer) as admin:
        created = await admin.client.post("/dead-letters/operations", json={"kind": "replay", "filter": {}})
        path = f"/dead-letters/operations/{created.json()['id']}"
        await asyncio.wait_for(producer.entered.wait(), 20)
        cancelled = await admin.client.post(f"{path}/cancel", headers={"x-actor": "bob"})
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert (await admin.client.post(f"{path}/cancel")).status_code == 409
        producer.gate.set()

        async def noted() -> bool:
            return bool((await admin.get(path)).json()["done"] == 2)

        await eventually(noted, 20, "what was on its way to be noted")
    assert len(producer.records) == 2
    statuses = [
        one.status
        for one in admin_queries(reader).dead_letters.page(DeadLetterFilter(), limit=9).dead_letters
    ]
    assert sorted(statuses) == ["pending"] * 4 + ["replayed"] * 2


async def test_many_large_dead_letters_are_held_a_few_at_a_time(
    writer: Engine, reader: Engine, fill: StoreFiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admin_api.operation_runner._BYTES", 100_000)
    fill.records([(None, {"value": b"x" * 40_000, "reason": "schema"})] * 12)
    producer = _Watching()
    async with admin_over(admin_queries(reader), writer=writer, producer=producer) as admin:
        created = await admin.client.post("/dead-letters/operations", json={"kind": "replay", "filter": {}})
        path = f"/dead-letters/operations/{created.json()['id']}"

        async def ended() -> bool:
            return bool((await admin.get(path)).json()["status"] == "completed")

        await eventually(ended, 20, "the operation to end")
    assert len(producer.records) == 12
    assert producer.most <= 2


class _Watching(MemoryProducer):
    """Notes how many records are on their way at once."""

    most = 0

    async def publish(self, records: Any, *, timeout: float) -> None:
        self._in_flight += 1
        self.most = max(self.most, self._in_flight)
        await asyncio.sleep(0)
        self._in_flight -= 1
        await super().publish(records, timeout=timeout)


_OPERATIONS = "/dead-letters/operations"
_JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("/dead-letters/2/replay", b"", {}, 404, "unknown_dead_letter"),
        ("/dead-letters/2/discard", b"", {}, 404, "unknown_dead_letter"),
        ("/dead-letters/x/replay", b"", {}, 422, "invalid_request"),
        ("/dead-letters/1/replay?force=1", b"", {}, 422, "invalid_parameter"),
        ("/dead-letters/1/replay", b"{}", {"content-type": "text/plain"}, 415, "unsupported_content_type"),
        ("/dead-letters/1/replay", b"{}", {**_JSON, "content-encoding": "gzip"}, 415, None),
        ("/dead-letters/1/replay", b"{}", _JSON, 422, "invalid_event"),
        ("/dead-letters/1/replay", b"nonsense", _JSON, 422, "invalid_event"),
        ("/dead-letters/1/replay", b"\xff", _JSON, 422, "invalid_event"),
        ("/dead-letters/1/replay", b"[" * 100_000, _JSON, 422, "invalid_event"),
        ("/dead-letters/1/replay", b" " * (256 * 1024 + 1), _JSON, 413, "body_too_large"),
        ("/dead-letters/1/replay", b"", {"x-actor": "x" * 256}, 422, "invalid_parameter"),
        ("/dead-letters/1/replay", b"", {"x-actor": "a\tb"}, 422, "invalid_parameter"),
        ("/dead-letters/1/replay", b"", {}, 409, "wrong_status"),
        (_OPERATIONS, b"", {}, 422, "invalid_parameter"),
        (_OPERATIONS, b"[]", _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b"nonsense", _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "replay"}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "erase", "filter": {}}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": ["replay"], "filter": {}}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "replay", "filter": {"reason": "odd"}}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "replay", "filter": {"status": "replayed"}}', _JSON, 422, None),
        (_OPERATIONS, b'{"kind": "replay", "filter": {"topic": 5}}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "replay", "filter": {"topic": "\\ud800"}}', _JSON, 422, None),
        (_OPERATIONS, b'{"kind": "replay", "filter": {"topic": "\\u0000"}}', _JSON, 422, None),
        (_OPERATIONS, b'{"kind": "replay", "filter": {"since": "now"}}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "replay", "filter": {"odd": "x"}}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "replay", "filter": {}, "limit": 0}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b'{"kind": "replay", "filter": {}, "limit": true}', _JSON, 422, None),
        (_OPERATIONS, b'{"kind": "replay", "filter": {}, "limit": 1e400}', _JSON, 422, None),
        (_OPERATIONS, b'{"kind": "replay", "filter": {}, "dry_run": "no"}', _JSON, 422, None),
        (_OPERATIONS, b'{"kind": "replay", "filter": {}, "more": 1}', _JSON, 422, "invalid_parameter"),
        (_OPERATIONS, b" " * 20_000, _JSON, 413, "body_too_large"),
        (f"{_OPERATIONS}/7/cancel", b"", {}, 404, "unknown_operation"),
    ],
)
async def test_a_request_that_cannot_be_met_is_answered_with_a_sentence_and_changes_nothing(
    sqlite_url: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str | None,
) -> None:
    writer, reader = open_store(sqlite_url), open_store(sqlite_url, read_only=True)
    StoreFiller(writer).invalid(None, reason="tombstone")
    async with admin_over(admin_queries(reader), writer=writer) as admin:
        answer = await admin.client.post(path, content=body, headers=headers)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.status_code == status, answer.text
        assert code is None or answer.json()["code"] == code
        assert answer.json()["detail"].endswith(".")
        assert (await admin.get("/dead-letters/1")).json()["status"] == "pending"
        assert (await admin.get("/audit")).json()["count"] == 0
        assert (await admin.get(_OPERATIONS)).json()["count"] == 0
    writer.dispose()
    reader.dispose()
