"""How two contents of one identity are compared."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from admin_api.difference import MAX_CHANGES, MAX_SHOWN_BYTES, Content, Difference, difference
from events.codec import decode_event


def content(payload: str, **fields: str) -> Content:
    event = {"topic": "t", "event_id": "1", "timestamp": "2026-01-31T12:00:00Z", "source": "s", **fields}
    decoded = decode_event((json.dumps(event)[:-1] + f', "payload": {payload}}}').encode())
    return Content(decoded.timestamp, decoded.source, msgspec.Raw(decoded.payload))


def content_hash(payload: str) -> int:
    envelope = '{"topic":"t","event_id":"1","timestamp":"2026-01-31T12:00:00Z","source":"s","payload":'
    return decode_event(f"{envelope}{payload}}}".encode()).content_hash


def shown(found: Difference) -> list[tuple[Any, ...]]:
    """As a caller gets it."""
    decoded = json.loads(msgspec.json.encode(found))
    return [(one["path"], one["change"], one["stored"], one["rejected"]) for one in decoded["changes"]]


def test_every_place_is_named_with_both_values() -> None:
    found = difference(
        content('{"a": {"b/c~": [1, {"x": null}]}, "gone": [], "same": {"y": [true]}}', source="shop"),
        content('{"same": {"y": [true]}, "a": {"b/c~": [2, {"x": 0}, "new"]}, "come": {}}', source="web"),
    )
    assert found.complete
    assert shown(found) == [
        ("/source", "changed", "shop", "web"),
        ("/payload/a/b~1c~0/0", "changed", 1, 2),
        ("/payload/a/b~1c~0/1/x", "changed", None, 0),
        ("/payload/a/b~1c~0/2", "added", None, "new"),
        ("/payload/gone", "removed", [], None),
        ("/payload/come", "added", None, {}),
    ]


def test_timestamps_are_compared_as_moments() -> None:
    stored = content("{}", timestamp="2026-01-31T12:00:00Z")
    assert shown(difference(stored, content("{}", timestamp="2026-01-31T13:00:00.000+01:00"))) == []
    moved = difference(stored, content("{}", timestamp="2026-01-31T12:00:00.5Z"))
    assert shown(moved) == [("/timestamp", "changed", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.500000Z")]


@pytest.mark.parametrize(
    "numbers",
    [
        *("1 1.0", "1.0 1.00", "1e2 100.0", "0.0 -0.0", "0 -0", "0.0 0e5", "1e-300 10e-301"),
        "12345678901234567890123 12345678901234567890124",
        "0.1 0.10000000000000000001",
        *("1e-99999999999 1e-99999999998", "1e-99999999999999999 0.0"),
        *("true 1", '"1" 1', "null false"),
    ],
)
def test_values_differ_exactly_if_the_contents_do(numbers: str) -> None:
    first, second = (f'{{"n": {number}}}' for number in numbers.split())
    differ = bool(difference(content(first), content(second)).changes)
    assert differ == (content_hash(first) != content_hash(second))


def test_numbers_are_shown_with_the_digits_they_were_sent_with() -> None:
    digits = "9" * 900
    found = difference(content('{"n": 1.50}'), content(f'{{"n": {digits}}}'))
    encoded = msgspec.json.encode(found).decode()
    assert '"stored":1.50' in encoded
    assert f'"rejected":{digits}' in encoded


def test_a_large_value_is_shown_by_its_beginning() -> None:
    found = difference(content('{"a": 1}'), content(json.dumps({"a": "é" * MAX_SHOWN_BYTES})))
    (change,) = found.changes
    assert change.shortened
    assert change.rejected.startswith('"éé')
    assert len(change.rejected.encode()) <= MAX_SHOWN_BYTES


def test_the_number_of_changes_is_bounded() -> None:
    found = difference(content("{}"), content(json.dumps({str(n): n for n in range(50_000 // 4)})))
    assert len(found.changes) == MAX_CHANGES
    assert not found.complete


def test_the_deepest_payload_can_be_compared() -> None:
    first, second = ("[" * 62 + number + "]" * 62 for number in "12")
    (change,) = difference(content(f'{{"a": {first}}}'), content(f'{{"a": {second}}}')).changes
    assert change.path == "/payload/a" + "/0" * 62
