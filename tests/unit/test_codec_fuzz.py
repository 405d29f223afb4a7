"""Any bytes at all: an event, or a reason; never anything else, and the same by both ways of decoding."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.codec import check_event, check_events, decode_event, decode_events
from events.errors import InvalidEvent
from events.event import Event
from events.split import split_events
from tests.support.mutations import mutated

numbers = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
documents = st.fixed_dictionaries(
    {
        "topic": st.sampled_from(["orders", "naïve ☃"]) | st.text(max_size=5),
        "event_id": st.text(min_size=1, max_size=5),
        "timestamp": st.sampled_from(["2026-01-31T12:00:00Z", "1999-12-31T23:59:59.123456789+05:30", "now"]),
        "source": st.text(min_size=1, max_size=4),
        "payload": st.dictionaries(st.text(max_size=4), values, max_size=3),
    }
)
raw_events = documents.map(lambda document: json.dumps(document).encode())
damaged = st.builds(mutated, raw_events, st.randoms(use_true_random=False))


def outcome(raw: bytes) -> tuple[Any, ...]:
    """What decoding gives, as something to compare."""
    try:
        return told(decode_event(raw))
    except InvalidEvent as error:
        return told(error)


def told(decoded: Event | InvalidEvent) -> tuple[Any, ...]:
    if isinstance(decoded, InvalidEvent):
        return decoded.code, decoded.message, decoded.topic, decoded.event_id
    return msgspec.structs.astuple(decoded)


@given(st.binary(max_size=300) | damaged)
def test_any_bytes_are_an_event_or_a_reason(raw: bytes) -> None:
    assert outcome(raw) == outcome(raw)


@given(raw_events | damaged)
def test_checking_finds_what_decoding_finds(raw: bytes) -> None:
    try:
        checked: tuple[Any, ...] = check_event(raw)
    except InvalidEvent as error:
        checked = told(error)
    decoded = outcome(raw)
    assert checked == decoded[: len(checked)]


@given(st.lists(raw_events | damaged, max_size=5), st.lists(raw_events, max_size=3))
def test_company_makes_no_difference(some: list[bytes], others: list[bytes]) -> None:
    raws = others + some
    alone = [outcome(raw) for raw in raws]
    assert [told(decoded) for decoded in decode_events(raws)] == alone
    for checked, expected in zip(chain.from_iterable(check_events(raws)), alone, strict=True):
        found = told(checked) if isinstance(checked, InvalidEvent) else checked
        assert found == expected[: len(found)]


@given(raw_events | damaged)
def test_the_fast_way_and_the_exact_way_agree(raw: bytes) -> None:
    fast = outcome(raw)
    with pytest.MonkeyPatch.context() as without:
        without.setattr("events.payload.orjson.loads", refuse)
        assert outcome(raw) == fast


def refuse(*_: object) -> Any:
    """The fast way, taken by nothing."""
    raise orjson.JSONDecodeError("not here", "", 0)


@given(st.lists(raw_events, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_damaged_body_is_split_or_refused(parts: list[bytes], random: Any) -> None:
    body = mutated(b"[" + b",".join(parts) + b"]", random)
    try:
        found = split_events(body)
    except InvalidEvent:
        return
    for raw in found:
        outcome(raw)
