"""Cursors are opaque, and good for the listing they came from only."""

from __future__ import annotations

import base64
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin_api.cursor import decode_name, decode_number, encode_cursor
from db.event_filter import DeadLetterFilter, EventFilter
from telemetry.problem import Problem

FILTER = EventFilter(topic="orders", source="shop")


@given(st.integers(0, 2**63 - 1))
def test_a_number_comes_back(position: int) -> None:
    assert decode_number(encode_cursor("events", FILTER, position), "events", FILTER) == position


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=255))
def test_a_name_comes_back(position: str) -> None:
    assert decode_name(encode_cursor("topics", None, position), "topics", None) == position


def test_a_cursor_needs_no_escaping_in_a_url_and_is_short() -> None:
    cursor = encode_cursor("events", FILTER, 2**63 - 1)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", cursor)


@pytest.mark.parametrize(
    "other",
    [
        EventFilter(),
        EventFilter(topic="orders"),
        EventFilter(source="orders", topic="shop"),
        DeadLetterFilter(),
    ],
)
def test_a_cursor_of_another_filter_is_refused(other: msgspec.Struct) -> None:
    cursor = encode_cursor("events", other, 7)
    with pytest.raises(Problem) as caught:
        decode_number(cursor, "events", FILTER)
    assert (caught.value.status, caught.value.code) == (422, "cursor_mismatch")


def test_a_cursor_of_another_listing_is_refused() -> None:
    with pytest.raises(Problem):
        decode_number(encode_cursor("gaps", None, 7), "events", None)


def encoded(content: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "?",
        "AAAA",
        "ü",
        "a" * 5_000,
        encoded([1, b"", 3]),
        encoded([2, b"12345678", 3]),
        encoded(["1", b"12345678", 3]),
        encoded([1, b"12345678"]),
        encoded({"version": 1}),
        encode_cursor("events", FILTER, "a name"),
        encode_cursor("events", FILTER, -1),
        encode_cursor("events", FILTER, 2**63),
        encode_cursor("events", FILTER, 7)[:-2],
        encode_cursor("events", FILTER, 7) + "AAAA",
    ],
)
def test_what_is_no_cursor_is_refused_with_a_sentence(cursor: str) -> None:
    with pytest.raises(Problem) as caught:
        decode_number(cursor, "events", FILTER)
    assert caught.value.status == 422
    assert caught.value.detail.startswith("`cursor`")


@given(st.text(max_size=60))
def test_no_text_is_more_than_refused(text: str) -> None:
    with pytest.raises(Problem):
        decode_number(text, "events", FILTER)
    with pytest.raises(Problem):
        decode_name(text, "topics", None)


@pytest.mark.parametrize("position", ["with\0nul", 7])
def test_a_name_that_no_topic_can_have_is_refused(position: str | int) -> None:
    with pytest.raises(Problem):
        decode_name(encode_cursor("topics", None, position), "topics", None)
