"""Reading around bytes that the client cannot decode."""

from __future__ import annotations

import struct

import pytest

from broker.kafka.salvage import salvage
from broker.ports import Record, UndecodableRecord
from tests.support.kafka_raw import batch, sealed, with_broken_checksum, with_codec

PRODUCER_AT, COUNT_AT, RECORDS_AT = 43, 57, 61


def at(raw: bytes, offset: int) -> bytes:
    """The batch at another place in the log."""
    return struct.pack(">q", offset) + raw[8:]


def of_producer(raw: bytes, producer: int, *, control: bool = False) -> bytes:
    """The batch as part of a transaction."""
    attributes = struct.pack(">h", 0x10 | (0x20 if control else 0))
    marked = raw[:21] + attributes + raw[23:PRODUCER_AT] + struct.pack(">q", producer) + raw[51:]
    return sealed(marked)


def marker(producer: int, kind: int) -> bytes:
    return of_producer(batch([b"\0" * 6], key=struct.pack(">hh", 0, kind)), producer, control=True)


def read(
    *raw: bytes,
    position: int = 0,
    end: int = 1_000,
    aborted: tuple[tuple[int, int], ...] = (),
    most: int = 100,
) -> tuple[list[object], int]:
    """Values of records, and `(offset, next offset)` of unreadable places."""
    found, after = salvage(
        b"".join(raw), partition=7, position=position, end=end, aborted=aborted, max_records=most
    )
    assert all(item.partition == 7 for item in found)
    return [
        item.value if isinstance(item, Record) else (item.offset, item.next_offset) for item in found
    ], after


@pytest.mark.parametrize("compression", [0, 1, 2, 3, 4])
def test_good_batches_are_read_as_they_were_written(compression: int) -> None:
    headers = [("again", b"1"), ("again", None)]
    raw = batch([b"a", None, b"c" * 5_000], headers=headers, compression=compression)
    found, after = salvage(raw, partition=0, position=0, end=3, aborted=(), max_records=10)
    assert after == 3
    assert found == [
        Record(0, offset, 1_700_000_000_000, b"key", value, tuple(headers))
        for offset, value in enumerate([b"a", None, b"c" * 5_000])
    ]


def test_records_before_the_position_are_not_returned() -> None:
    assert read(batch([b"0", b"1", b"2"]), position=2) == ([b"2"], 3)


def test_a_batch_with_a_bad_checksum_is_one_place() -> None:
    raw = [batch([b"0"]), at(with_broken_checksum(batch([b"1", b"2"])), 1), at(batch([b"3"]), 3)]
    assert read(*raw) == ([b"0", (1, 3), b"3"], 4)


def test_an_offset_that_a_bad_batch_claims_is_not_believed_beyond_the_next_batch() -> None:
    lying = bytearray(with_broken_checksum(batch([b"0", b"1"])))
    struct.pack_into(">i", lying, 23, 1_000_000)
    assert read(bytes(lying), at(batch([b"2"]), 2)) == ([(0, 2), b"2"], 3)
    assert read(bytes(lying), end=2) == ([(0, 2)], 2)


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5, 7])
def test_a_batch_whose_compression_cannot_be_undone_is_one_place(codec: int) -> None:
    assert read(with_codec(batch([b"0", b"1"]), codec), at(batch([b"2"]), 2)) == ([(0, 2), b"2"], 3)


def test_a_record_with_a_bad_header_is_one_place_among_good_ones() -> None:
    good = batch([b"0", b"1", b"2"], headers=[("OKEY", b"")])
    head, first, rest = good.partition(b"OKEY")
    bad = sealed(head + first + rest.replace(b"OKEY", b"\xff\xff\xff\xff", 1))
    assert read(bad) == ([b"0", (1, 2), b"2"], 3)


def test_a_record_whose_length_is_nonsense_takes_the_rest_of_its_batch_with_it() -> None:
    good = batch([b"0", b"1", b"2"])
    length = good[RECORDS_AT] // 2 + 1
    second = RECORDS_AT + length
    bad = sealed(good[:second] + b"\xff\xff\xff\xff\x0f" + good[second + 5 :])
    assert read(bad, at(batch([b"3"]), 3)) == ([b"0", (1, 3), b"3"], 4)


def test_a_batch_that_counts_more_records_than_it_has_offsets_takes_none_of_the_next() -> None:
    lying = batch([b"a", b"b"])
    lying = sealed(lying[:COUNT_AT] + struct.pack(">i", 5) + lying[RECORDS_AT:])
    assert read(lying, at(batch([b"c"]), 2)) == ([b"a", b"b", b"c"], 3)


def test_a_batch_that_is_cut_off_is_left_for_the_next_fetch() -> None:
    assert read(batch([b"0"]), at(batch([b"1"]), 1)[:-3]) == ([b"0"], 1)
    assert read(batch([b"0"])[:-1]) == ([], 0)


def test_aborted_records_and_markers_take_offsets_and_are_not_returned() -> None:
    raw = [
        of_producer(batch([b"gone"]), 5),
        at(of_producer(batch([b"other"]), 6), 1),
        at(marker(5, 0), 2),
        at(of_producer(batch([b"kept"]), 5), 3),
        at(marker(5, 1), 4),
    ]
    assert read(*raw, aborted=((5, 0),)) == ([b"other", b"kept"], 5)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_reading_stops_at_the_most_records_and_goes_on_from_there(most: int) -> None:
    raw = [batch([b"0", b"1"]), at(with_broken_checksum(batch([b"2"])), 2), at(batch([b"3", b"4"]), 3)]
    found: list[object] = []
    position = 0
    while position < 5:
        some, position = read(*raw, position=position, most=most)
        assert 0 < len(some) <= most
        found += some
    assert found == [b"0", b"1", (2, 3), b"3", b"4"]


def test_no_bytes_at_all_can_break_it() -> None:
    good = batch([b"0", b"1"], headers=[("name", b"value")])
    for place in range(12, len(good)):
        for byte in (0x00, 0x7F, 0xFF):
            raw = sealed(good[:place] + bytes([byte]) + good[place + 1 :])
            found, after = salvage(raw, partition=0, position=0, end=2, aborted=(), max_records=10)
            assert after in (1, 2)
            assert all(isinstance(item, Record | UndecodableRecord) for item in found)
