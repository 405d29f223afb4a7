"""The gateway over a real socket: which events it takes, and what it makes of them."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from events.event import MAX_EVENT_BYTES
from tests.support.gateway import Running, assert_problem, running
from tests.support.hostile import REFUSED, accepted, encode, event


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Running]:
    """One gateway for the tests that only look at single answers."""
    async with running() as gateway:
        yield gateway


MANY: dict[str, tuple[bytes, int, str]] = {
    "10,001 events": (b"[" + b",".join([encode(event())] * 10_001) + b"]", 413, "too_many_events"),
    "five million numbers": (b"[" + b"1," * 5_000_000 + b"1]", 413, "too_many_events"),
}
HOSTILE = {name: (body, status, code) for name, (body, _, status, code) in REFUSED.items()} | MANY


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


GOOD = accepted("shop.orders") | {"array of one": encode([event()])}


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
