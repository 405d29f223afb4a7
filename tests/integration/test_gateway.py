"""The gateway over a real socket: which events it takes, and what it makes of them."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from events.event import MAX_EVENT_BYTES
from tests.support.gateway import Running, assert_problem, encode, event, running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Running]:
    """One gateway for the tests that only look at single answers."""
    async with running() as gateway:
        yield gateway


def with_payload(payload: str) -> bytes:
    """An event around the text of a payload."""
    return encode(event(payload={})).replace(b'"payload": {}', b'"payload": ' + payload.encode())


def with_timestamp(text: str) -> bytes:
    """An event whose timestamp is this JSON text."""
    return encode(event()).replace(b'"2026-01-31T12:00:00+01:00"', text.encode())


def with_id(text: str) -> bytes:
    """An event whose id is this JSON text."""
    return encode(event()).replace(b'"order-1"', text.encode())


HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "empty body": (b"", 400, "invalid_json"),
    "white space": (b" \n", 400, "invalid_json"),
    "malformed": (b'{"topic": ', 400, "invalid_json"),
    "malformed array": (b"[{}, ", 400, "invalid_json"),
    "malformed element": (b'[{"topic" "a"}]', 400, "invalid_json"),
    "two documents": (encode(event()) + encode(event()), 400, "invalid_json"),
    "bad UTF-8": (encode(event()).replace(b"web", b"w\xff"), 400, "invalid_encoding"),
    "UTF-16": (json.dumps(event()).encode("utf-16"), 400, "invalid_encoding"),
    "UTF-16 without mark": (json.dumps(event()).encode("utf-16-le"), 400, "invalid_json"),
    "byte order mark": (b"\xef\xbb\xbf" + encode(event()), 400, "invalid_json"),
    "empty array": (b"[]", 422, "schema"),
    "null": (b"null", 422, "schema"),
    "number": (b"17", 422, "schema"),
    "string": (b'"event"', 422, "schema"),
    "missing id": (encode(event(event_id=...)), 422, "no_event_acceptable"),
    "integer id": (encode(event(event_id=17)), 422, "no_event_acceptable"),
    "empty id": (encode(event(event_id="")), 422, "no_event_acceptable"),
    "256-byte id": (encode(event(event_id="x" * 256)), 422, "no_event_acceptable"),
    "90 four-byte characters as id": (encode(event(event_id="😀" * 90)), 422, "no_event_acceptable"),
    "control character in id": (encode(event(event_id="a\nb")), 422, "no_event_acceptable"),
    "NUL in id": (encode(event(event_id="a\0b")), 422, "no_event_acceptable"),
    "NUL in nested value": (encode(event(payload={"a": [{"b": "\0"}]})), 422, "no_event_acceptable"),
    "NUL in nested key": (encode(event(payload={"a": [{"\0": 1}]})), 422, "no_event_acceptable"),
    "surrogate in id": (with_id('"\\ud800"'), 422, "no_event_acceptable"),
    "surrogate in payload": (with_payload('{"a": "\\udfff"}'), 422, "no_event_acceptable"),
    "surrogate in key": (with_payload('{"\\udfff": 1}'), 422, "no_event_acceptable"),
    "NaN": (with_payload('{"a": NaN}'), 422, "no_event_acceptable"),
    "Infinity": (with_payload('{"a": -Infinity}'), 422, "no_event_acceptable"),
    "1e400": (with_payload('{"a": 1e400}'), 422, "no_event_acceptable"),
    "5,000-digit integer": (with_payload(f'{{"a": {"9" * 5_000}}}'), 422, "no_event_acceptable"),
    "depth 65": (with_payload('{"a":' * 65 + "1" + "}" * 65), 422, "no_event_acceptable"),
    "depth 100,000": (
        with_payload('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        422,
        "no_event_acceptable",
    ),
    "naive timestamp": (with_timestamp('"2026-01-31T12:00:00"'), 422, "no_event_acceptable"),
    "year 10000": (with_timestamp('"10000-01-01T00:00:00Z"'), 422, "no_event_acceptable"),
    "infinity": (with_timestamp('"infinity"'), 422, "no_event_acceptable"),
    "now": (with_timestamp('"now"'), 422, "no_event_acceptable"),
    "timestamp 1e400": (with_timestamp("1e400"), 422, "no_event_acceptable"),
    "integer epoch": (with_timestamp("1769857200"), 422, "no_event_acceptable"),
    "payload array": (with_payload("[]"), 422, "no_event_acceptable"),
    "payload string": (with_payload('"text"'), 422, "no_event_acceptable"),
    "payload null": (with_payload("null"), 422, "no_event_acceptable"),
    "unknown field": (encode(event(priority=1)), 422, "no_event_acceptable"),
    "several bad events": (encode([event(event_id=1), event(topic="")]), 422, "no_event_acceptable"),
    "large event": (with_payload(json.dumps({"a": "x" * MAX_EVENT_BYTES})), 413, "event_too_large"),
    "10,001 events": (b"[" + b",".join([encode(event())] * 10_001) + b"]", 413, "too_many_events"),
    "five million numbers": (b"[" + b"1," * 5_000_000 + b"1]", 413, "too_many_events"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_body_is_refused_with_its_status_and_nothing_reaches_the_log(
    name: str, shared: Running
) -> None:
    body, status, code = HOSTILE[name]
    calls = shared.producer.calls
    response = await shared.publish(body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert_problem(response)
    assert shared.producer.calls == calls


GOOD: dict[str, bytes] = {
    "literal backslash u0000": with_payload('{"a": "\\\\u0000"}'),
    "255-byte id": encode(event(event_id="x" * 255)),
    "63 four-byte characters as id": encode(event(event_id="😀" * 63)),
    "1,000-digit integer": with_payload(f'{{"a": {"9" * 1_000}}}'),
    "depth 64": with_payload('{"a":' * 64 + "1" + "}" * 64),
    "surrogate pair": with_payload('{"a": "\\ud83d\\ude00"}'),
    "white space around": b" \r\n\t" + encode(event()) + b"\n",
    "array of one": encode([event()]),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", GOOD)
async def test_unusual_but_valid_event_is_accepted_byte_for_byte(name: str, shared: Running) -> None:
    response = await shared.publish(GOOD[name])
    assert response.status_code == 200, response.text
    assert response.json() == {"accepted": 1, "queued": 1, "rejected": 0, "errors": None}
    assert shared.producer.records[-1].value == GOOD[name].strip(b" \r\n\t[]")


async def test_same_id_with_different_payload_is_accepted_and_left_to_the_verdict() -> None:
    async with running() as gateway:
        for total in (1, 2):
            assert (await gateway.publish(encode(event(payload={"total": total})))).status_code == 200
        assert len({record.key for record in gateway.producer.records}) == 1
        assert len({record.value for record in gateway.producer.records}) == 2


async def test_hundred_copies_in_one_batch_are_all_appended() -> None:
    async with running() as gateway:
        response = await gateway.publish(encode([event()] * 100))
        assert response.json() == {"accepted": 100, "queued": 100, "rejected": 0, "errors": None}
        assert len(gateway.producer.records) == 100


async def test_full_batch_of_10_000_events_is_accepted_in_order() -> None:
    async with running() as gateway:
        batch = [event(event_id=f"order-{number}") for number in range(10_000)]
        response = await gateway.publish(encode(batch))
        assert response.json() == {"accepted": 10_000, "queued": 10_000, "rejected": 0, "errors": None}
        assert [json.loads(record.value) for record in gateway.producer.records] == batch


async def test_mixed_batch_says_which_events_were_rejected_and_appends_the_rest() -> None:
    async with running() as gateway:
        large = event(event_id="large", payload={"a": "x" * MAX_EVENT_BYTES})
        response = await gateway.publish(encode([event(), event(event_id=""), event(topic=1), large]))
        assert response.status_code == 207
        document = response.json()
        assert (document["accepted"], document["queued"], document["rejected"]) == (1, 1, 3)
        assert [(e["index"], e["event_id"], e["code"]) for e in document["errors"]] == [
            (1, None, "schema"),
            (2, "order-1", "schema"),
            (3, None, "too_large"),
        ]
        assert len(gateway.producer.records) == 1


async def test_thousands_of_errors_are_counted_but_not_all_spelled_out() -> None:
    async with running() as gateway:
        response = await gateway.publish(encode([event(), *[event(event_id="")] * 1_500]))
        document = response.json()
        assert (document["rejected"], len(document["errors"]), document["errors_omitted"]) == (
            1_500,
            1_000,
            500,
        )


async def test_record_carries_key_time_and_ingress() -> None:
    async with running() as gateway:
        before = dt.datetime.now(dt.UTC)
        await gateway.publish(encode(event()))
        (record,) = gateway.producer.records
        headers = dict(record.headers)
        assert record.key == b"shop.orders\0order-1"
        assert headers.keys() == {"received_at", "ingress"}
        assert headers["ingress"] == b"http"
        text = (headers["received_at"] or b"").decode()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
        assert before <= dt.datetime.fromisoformat(text) <= dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("traceparent", "passed_on"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("nonsense", False),
    ],
)
async def test_only_a_valid_trace_context_is_passed_on(traceparent: str, passed_on: bool) -> None:
    async with running() as gateway:
        await gateway.publish(encode(event()), traceparent=traceparent)
        values = [v for name, v in gateway.producer.records[0].headers if name == "traceparent"]
        assert values == ([traceparent.encode()] if passed_on else [])
