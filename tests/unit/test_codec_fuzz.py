"""Any bytes at all: an event, or a reason; never anything else, and the same by both ways of decoding."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.codec import check_event, decode_event, split_events
from events.errors import InvalidEvent
from events.event import Event
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
        event = decode_event(raw)
    except InvalidEvent as error:
        return error.code, error.topic, error.event_id
    assert isinstance(event, Event)
    return event.topic, event.event_id, event.timestamp, event.source, event.content_hash, event.key


@given(st.binary(max_size=300) | damaged)
def test_any_bytes_are_an_event_or_a_reason(raw: bytes) -> None:
    assert outcome(raw) == outcome(raw)


@given(raw_events | damaged)
def test_checking_finds_what_decoding_finds(raw: bytes) -> None:
    try:
        checked: tuple[Any, ...] = check_event(raw)
    except InvalidEvent as error:
        checked = error.code, error.topic, error.event_id
    decoded = outcome(raw)
    assert checked == decoded[: len(checked)]


@given(raw_events | damaged)
def test_the_fast_way_and_the_exact_way_agree(raw: bytes) -> None:
    fast = outcome(raw)
    with pytest.MonkeyPatch.context() as without:
        without.setattr("events.codec.orjson.loads", refuse)
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
