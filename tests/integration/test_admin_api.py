"""What the admin API promises its callers, over both stores."""

from __future__ import annotations

import datetime as dt
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import Engine
from structlog.testing import capture_logs

from admin_api import schemas
from admin_api.app import admin_router
from admin_api.event_routes import ndjson
from admin_api.log_view import LogView
from admin_api.settings import AdminSettings
from db.batch import Position
from db.errors import StoreUnavailable
from db.event_filter import EventFilter
from db.event_queries import EventQueries, EventsPage
from events.event import microseconds
from tests.support.admin_client import Admin, admin_over, admin_queries
from tests.support.http_server import raw_connection, running_server
from tests.support.store_filler import START, StoreFiller, make_event, open_store

NOT_UTF8 = b"\xff\xfe\x00 not text"
READING = ["/events", "/events/export", "/events/a/b", "/stats", "/topics", "/partitions", "/gaps"]
READING += ["/dead-letters", "/dead-letters/1", "/dead-letters/groups", "/dead-letters/operations", "/audit"]


async def test_every_answer_is_what_its_schema_says(admin: Admin, fill: StoreFiller) -> None:
    admin.log.held = {0: (0, 10), 1: (0, 0)}
    fill.events([make_event("a"), make_event("a"), make_event("a", payload={"n": 1}), make_event("b")])
    fill.invalid(NOT_UTF8, headers=(("h", b"1"), ("h", None)), key=b"k", received_at_us=microseconds(START))
    fill.store.begin_incarnation(Position(0, 1, 5), 7, gap_from=5, gap_to=7, reason="expired")
    fill.store.heartbeat("worker-1", START)
    dead_letter = (await admin.get("/dead-letters?reason=invalid_json")).json()["dead_letters"][0]["id"]
    answers: dict[str, type[BaseModel]] = {
        "/events": schemas.EventsPage,
        "/events/orders/a": schemas.EventWithStory,
        "/stats": schemas.Stats,
        "/topics": schemas.TopicsPage,
        "/partitions": schemas.Partitions,
        "/gaps": schemas.GapsPage,
        "/dead-letters": schemas.DeadLettersPage,
        f"/dead-letters/{dead_letter}": schemas.DeadLetter,
    }
    for url, schema in answers.items():
        answer = await admin.get(url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), url
        shown = schema.model_validate_json(answer.content)
        assert shown.model_dump(mode="json", exclude_unset=True).keys() == answer.json().keys()


async def test_a_listing_shows_what_the_contract_names(admin: Admin, fill: StoreFiller) -> None:
    payload = '{"n":' + "9" * 1_000 + ',"e":"🦄","n":1.50}'
    fill.events(
        [make_event("whole", timestamp=START.replace(microsecond=0)), make_event("b", payload=payload)]
    )

    answer = await admin.get("/events")

    assert f'"payload":{payload},' in answer.text
    shown = json.loads(answer.text, parse_int=str)
    assert shown.keys() == {"events", "count", "next_cursor"}
    second, first = shown["events"]
    assert first.keys() == {"topic", "event_id", "timestamp", "source", "payload", "stored_at", "log"}
    assert first["timestamp"] == "2026-01-31T12:00:00Z"
    assert second["timestamp"] == "2026-01-31T12:00:00.250000Z"
    assert second["log"] == {"partition": "0", "offset": "1"}
    stored_at = dt.datetime.fromisoformat(first["stored_at"])
    assert first["stored_at"].endswith("Z")
    assert abs(dt.datetime.now(dt.UTC) - stored_at) < dt.timedelta(minutes=5)


async def test_following_the_cursor_shows_every_event_once(admin: Admin, fill: StoreFiller) -> None:
    fill.events(make_event(str(number), source=f"s{number % 2}") for number in range(25))
    seen: list[str] = []
    url = "/events?source=s1&limit=5"
    cursor = None
    while True:
        page = (await admin.get(url + (f"&cursor={cursor}" if cursor else ""))).json()
        seen += [event["event_id"] for event in page["events"]]
        assert page["count"] == len(page["events"])
        cursor = page["next_cursor"]
        if cursor is None:
            break
        # What is stored now is not part of this walk.
        fill.events([make_event(f"later-{len(seen)}", source="s1")])
    assert seen == [str(number) for number in range(23, 0, -2)]


async def test_a_cursor_is_good_for_its_own_listing_and_filter_only(admin: Admin, fill: StoreFiller) -> None:
    fill.events(make_event(str(number)) for number in range(3))
    cursor = (await admin.get("/events?limit=1")).json()["next_cursor"]
    assert (await admin.get(f"/events?limit=2&cursor={cursor}")).status_code == 200
    for url in (f"/events?topic=orders&cursor={cursor}", f"/dead-letters?cursor={cursor}"):
        answer = await admin.get(url)
        assert (answer.status_code, answer.json()["code"]) == (422, "cursor_mismatch")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("/events?limit=0", "`limit` must be a whole number from 1 to 1,000."),
        ("/events?limit=1001", "`limit` must be"),
        ("/events?limit=1e2", "`limit` must be"),
        ("/events?limit=٣", "`limit` must be"),
        ("/events?limit=", "`limit` must be"),
        ("/events?offset=-1", "`offset` must be"),
        ("/events?offset=9223372036854775808", "`offset` must be"),
        ("/events?since=2026-01-31", "`since` must be RFC 3339 with an offset"),
        ("/events?since=2026-01-31T12:00:00", "`since` must be RFC 3339 with an offset"),
        ("/events?until=2026-01-31T12:00:00+01:00", "write the + of an offset as %2B"),
        ("/events?until=infinity", "`until` must be"),
        ("/events?stored_since=10000-01-01T00:00:00Z", "`stored_since` must be"),
        ("/events?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "`since` must be before `until`."),
        ("/events?topic=", "`topic` must be 1 to 255 bytes"),
        ("/events?topic=a%00b", "NUL"),
        ("/events?source=%00", "`source` must be"),
        ("/events?event_id=" + "x" * 256, "`event_id` must be"),
        ("/events?cursor=garbage", "`cursor` is not a cursor"),
        ("/events?cursor=AAAA&offset=1", "Give `cursor` or `offset`, not both."),
        ("/events?limit=1&limit=2", "more than once"),
        ("/events?tpoic=orders", "allowed are limit, cursor, topic"),
        ("/events/export?limit=5", "allowed are topic, source"),
        ("/events/a/b?verbose=1", "none is allowed here"),
        ("/stats?topic=orders", "none is allowed here"),
        ("/dead-letters?reason=bad", "`reason` must be one of"),
        ("/dead-letters?status=open", "`status` must be one of pending, replaying, replayed"),
        ("/dead-letters/0", "dead_letter_id"),
        ("/dead-letters/9223372036854775808", "dead_letter_id"),
        ("/dead-letters/one", "dead_letter_id"),
        ("/topics?cursor=garbage", "`cursor` is not a cursor"),
        ("/events/%FF/b", "not UTF-8"),
        ("/events/a%2Fb", "`event_id` must be"),
        ("/events/a/%00", "NUL"),
    ],
)
async def test_a_parameter_that_breaks_its_rule_is_answered_with_a_sentence(
    embedded: tuple[Admin, StoreFiller], url: str, sentence: str
) -> None:
    answer = await embedded[0].get(url)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["retryable"]) == (422, 422, False)
    assert sentence in problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("topic", "event_id"),
    [
        ("a/b", "c"),
        ("a", "b/c"),
        ("/a/", "/"),
        ("export", "x"),
        ("events/x", "/events/y"),
        ("100%", "%2F"),
        ("a b+c", "?x=1&y#z"),
        ("заказы/2026", "🦄/é"),
        ("..", "."),
    ],
)
async def test_an_event_is_found_whatever_characters_its_names_have(
    embedded: tuple[Admin, StoreFiller], topic: str, event_id: str
) -> None:
    admin, fill = embedded
    fill.events([make_event(event_id, topic=topic), make_event("other", topic="a")])
    path = f"/events/{quote(topic, safe='')}/{quote(event_id, safe='')}"
    async with running_server(admin.app) as server, raw_connection(server) as connection:
        await connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await connection.response()
    assert answer.status == 200
    assert (answer.json()["event"]["topic"], answer.json()["event"]["event_id"]) == (topic, event_id)
    found = (await admin.client.get("/events", params={"topic": topic, "event_id": event_id})).json()
    assert [event["event_id"] for event in found["events"]] == [event_id]


async def test_slashes_that_are_not_encoded_belong_to_the_event_id(admin: Admin, fill: StoreFiller) -> None:
    fill.events([make_event("b/c", topic="a")])
    assert (await admin.get("/events/a/b/c")).json()["event"]["event_id"] == "b/c"
    assert (await admin.get("/events/a%2Fb/c")).status_code == 404


async def test_an_export_is_one_line_of_json_per_event(admin: Admin, fill: StoreFiller) -> None:
    fill.events([make_event("1", payload='{\r\n "a":\n"line\\nbreak" }'), make_event("2"), make_event("3")])
    answer = await admin.get("/events/export?topic=orders")
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = answer.text.split("\n")
    assert lines.pop() == ""
    events = [schemas.StoredEvent.model_validate_json(line) for line in lines]
    assert [event.event_id for event in events] == ["3", "2", "1"]
    assert events[-1].payload == {"a": "line\nbreak"}
    assert (await admin.get("/events/export?topic=nowhere")).text == ""


def test_an_export_takes_the_same_memory_for_many_events_as_for_few(
    fill: StoreFiller, reader: Engine
) -> None:
    payload = {"text": "x" * 200}
    for start in range(0, 20_000, 5_000):
        topics = ("few" if number < 2_000 else "many" for number in range(start, start + 5_000))
        fill.events(
            make_event(str(number), topic=topic, payload=payload)
            for number, topic in enumerate(topics, start)
        )
    queries = EventQueries(reader, timeout=30, max_page_bytes=10**9)

    def export(chosen: EventFilter) -> tuple[int, int]:
        tracemalloc.start()
        count = 0
        for chunk in map(ndjson, queries.pages(chosen, chunk=500)):
            count += chunk.count(b"\n")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, peak

    export(EventFilter(topic="few"))  # fills the caches
    few, small = export(EventFilter(topic="few"))
    every, large = export(EventFilter())
    assert (few, every) == (2_000, 20_000)
    assert large < 1.5 * small


async def test_an_export_that_fails_on_the_way_cannot_be_taken_for_a_complete_one(
    reader: Engine, fill: StoreFiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill.events(make_event(str(number)) for number in range(10))
    calls = 0
    read = EventQueries._page

    def fail_later(self: EventQueries, *args: Any) -> EventsPage:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoreUnavailable
        return read(self, *args)

    monkeypatch.setattr(EventQueries, "_page", fail_later)
    with capture_logs() as lines:
        async with (
            admin_over(admin_queries(reader), AdminSettings(export_chunk_events=2)) as admin,
            running_server(admin.app) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/events/export")
    assert [line["event"] for line in lines] == ["request failed", "request"]


@pytest.fixture(params=["sqlite", "postgres"])
def unreachable(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A store that cannot be opened: no server at the address, or a directory where the file should be."""
    sqlite = f"sqlite:///{request.getfixturevalue('tmp_path')}"
    engine = open_store(sqlite if request.param == "sqlite" else "postgresql://nobody@127.0.0.1:1/none")
    yield engine
    engine.dispose()


@pytest.mark.parametrize("url", READING)
async def test_a_database_that_is_down_is_a_503_that_says_when_to_come_back(
    unreachable: Engine, url: str
) -> None:
    async with admin_over(admin_queries(unreachable)) as admin:
        answer = await admin.get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) >= 1
    assert (answer.json()["code"], answer.json()["retryable"]) == ("database_unavailable", True)


async def test_readiness_follows_the_database_and_the_drain(admin: Admin, unreachable: Engine) -> None:
    ready = await admin.get("/readyz?verbose")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["dependencies"] == {"database": {"status": "ok"}, "log": {"status": "ok"}}
    admin.health.begin_drain()
    assert (await admin.get("/readyz")).json() == {"status": "draining"}
    async with admin_over(admin_queries(unreachable)) as broken:
        answer = await broken.get("/readyz?verbose")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert answer.json()["dependencies"]["database"]["status"] == "unavailable"
        assert (await broken.get("/livez")).status_code == 200


async def test_a_query_that_takes_too_long_is_a_504_that_says_how_to_narrow_it(
    reader: Engine, fill: StoreFiller
) -> None:
    fill.events(make_event(str(number)) for number in range(20_000))
    async with admin_over(admin_queries(reader, timeout=0.001)) as admin:
        answer = await admin.get("/events?source=nobody")
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (
        504,
        "query_timeout",
        False,
    )
    assert "topic" in answer.json()["detail"]
    assert "stored_since" in answer.json()["detail"]


async def test_the_routes_can_be_part_of_the_gateway(reader: Engine, admin: Admin) -> None:
    queries = admin_queries(reader)
    embedded = FastAPI()
    embedded.include_router(
        admin_router(queries, LogView(admin.log, "events", timeout=1), AdminSettings(), admin.office)
    )
    paths = set(embedded.openapi()["paths"])
    assert not paths & {"/publish", "/livez", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}
    assert paths < set(admin.app.openapi()["paths"])


async def test_the_openapi_document_describes_every_answer(admin: Admin) -> None:
    page = (await admin.get("/docs")).text
    assert all(path in page for path in admin.app.openapi()["paths"])
    for path, operations in admin.app.openapi()["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            (success,) = (status for status in responses if status.startswith("2"))
            assert all("schema" in content for content in responses[success]["content"].values()), path
            if not path.endswith(("z", "/metrics")):
                assert {"422", "503", "504"} <= responses.keys(), path
                assert operation["description"], path
