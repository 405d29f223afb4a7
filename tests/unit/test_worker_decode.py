"""What the worker makes of records, whatever bytes they hold."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from broker.ports import Record, UndecodableRecord
from db.batch import InvalidRecord, ValidRecord
from stream_worker.decode import decode_records, fingerprint

EVENT = {
    "topic": "orders",
    "event_id": "1",
    "timestamp": "2026-01-01T00:00:00+02:00",
    "source": "shop",
    "payload": {"n": 1},
}


def record(
    value: bytes | None, *, offset: int = 7, headers: tuple[tuple[str, bytes | None], ...] = ()
) -> Record:
    return Record(partition=3, offset=offset, timestamp_ms=-1, key=None, value=value, headers=headers)


def event(**changes: object) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"),
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff", "invalid_encoding"),
        (b"[]", "schema"),
        (b'{"topic": "orders"}', "schema"),
        (event(event_id=5), "schema"),
        (event(extra=1), "schema"),
        (event(payload={"a": "\0"}), "unstorable_text"),
        (event(payload={"a": "\ud800"}), "unstorable_text"),
        (event(payload={"a": float("inf")}), "number_range"),
        (event(payload={"a": 10**1000}), "number_range"),
        (event(payload={"a": "x" * 256 * 1024}), "too_large"),
    ],
)
def test_a_record_that_breaks_a_rule_is_named_by_that_rule(value: bytes | None, reason: str) -> None:
    [invalid] = decode_records([record(value)])
    assert isinstance(invalid, InvalidRecord)
    assert invalid.reason == reason
    assert invalid.at.value == value
    assert invalid.error.endswith(".")


def test_a_place_the_client_could_not_read_becomes_a_dead_letter_with_its_coordinates() -> None:
    [invalid] = decode_records([UndecodableRecord(partition=1, offset=5, next_offset=9, error="bad CRC")])
    assert isinstance(invalid, InvalidRecord)
    assert (invalid.at.partition, invalid.at.offset, invalid.reason) == (1, 5, "undecodable_record")


def test_an_invalid_record_still_counts_for_its_topic_where_that_can_be_read() -> None:
    [invalid] = decode_records([record(event(payload=[]))])
    assert isinstance(invalid, InvalidRecord)
    assert (invalid.topic, invalid.event_id) == ("orders", "1")


@pytest.mark.parametrize("header", [b"", b"yesterday", b"\xff", b"2026-01-01T00:00:00", None])
def test_an_unreadable_received_at_header_does_not_cost_the_event(header: bytes | None) -> None:
    [valid] = decode_records([record(event(), headers=(("received_at", header),))])
    assert isinstance(valid, ValidRecord)
    assert valid.at.received_at_us is None


def test_the_first_received_at_header_is_taken() -> None:
    headers = (
        ("x", b"1"),
        ("received_at", b"2026-01-01T00:00:00.5Z"),
        ("received_at", b"2027-01-01T00:00:00Z"),
    )
    [valid] = decode_records([record(event(), headers=headers)])
    assert isinstance(valid, ValidRecord)
    assert valid.at.received_at_us == 1_767_225_600_500_000


def test_a_huge_received_at_header_is_read_and_not_remembered() -> None:
    header = b"2026-01-01T00:00:00.5" + b"0" * 500_000 + b"Z"
    tracemalloc.start()
    try:
        for number in range(5):
            unlike = header.replace(b"500", b"50%d" % number, 1)
            [valid] = decode_records([record(event(), headers=(("received_at", unlike),))])
            assert isinstance(valid, ValidRecord)
            assert valid.at.received_at_us is not None
            del valid, unlike
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < len(header)


def test_a_fingerprint_tells_records_apart_by_place_and_by_content() -> None:
    marks = {
        fingerprint(record(b"a")),
        fingerprint(record(b"b")),
        fingerprint(record(None)),
        fingerprint(record(b"")),
        fingerprint(record(b"a", offset=8)),
    }
    assert len(marks) == 5
    assert fingerprint(record(b"a")) == fingerprint(record(b"a"))
