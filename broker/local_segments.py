"""How the embedded log keeps records: encoded together in segments, under ids that sort them.

A *segment* holds consecutive records of one partition that one transaction appended, up to a bound. Its id is
`partition << 48 | first offset`: the segments of a partition lie together, in offset order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from zlib import crc32

import msgspec

from broker.ports import Headers, Record, UndecodableRecord

_OFFSET_BITS: Final = 48
MAX_OFFSET: Final = (1 << _OFFSET_BITS) - 1
_SEGMENT_RECORDS: Final = 1_000
_SEGMENT_BYTES: Final = 1024 * 1024

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_segment: Final = msgspec.msgpack.Decoder(list[tuple[bytes | None, bytes | None, Headers]]).decode


class Segment(msgspec.Struct, frozen=True, gc=False):
    """Records `base` up to but not including `next_offset` of a partition, as they lie in the file."""

    partition: int
    base: int
    next_offset: int
    timestamp_ms: int
    checksum: int
    records: bytes

    @property
    def id(self) -> int:
        return segment_id(self.partition, self.base)


def segment_id(partition: int, base: int) -> int:
    return partition << _OFFSET_BITS | base


def base_offset(segment_id: int) -> int:
    return segment_id & MAX_OFFSET


def encode_record(key: bytes, value: bytes, headers: Headers) -> bytes:
    """A record's bytes inside a segment. Raises UnicodeEncodeError for a lone surrogate in a header."""
    return _encode((key, value, headers))


def make_segments(
    partition: int, base: int, records: Sequence[bytes], timestamp_ms: int
) -> Iterator[Segment]:
    """Cut encoded records into segments, the first record at offset `base`."""
    pending: list[bytes] = []
    pending_bytes = 0
    for record in records:
        if pending and (len(pending) == _SEGMENT_RECORDS or pending_bytes + len(record) > _SEGMENT_BYTES):
            yield _segment(partition, base, pending, timestamp_ms)
            base += len(pending)
            pending, pending_bytes = [], 0
        pending.append(record)
        pending_bytes += len(record)
    if pending:
        yield _segment(partition, base, pending, timestamp_ms)


def read_segment(segment: Segment, position: int) -> list[Record | UndecodableRecord]:
    """The records of a segment from a position on; a damaged segment is one undecodable record."""
    if crc32(segment.records) != segment.checksum:
        error = "The checksum of this part of the log does not match its bytes."
        return [UndecodableRecord(segment.partition, max(segment.base, position), segment.next_offset, error)]
    skipped = max(0, position - segment.base)
    return [
        Record(segment.partition, offset, segment.timestamp_ms, key, value, headers)
        for offset, (key, value, headers) in enumerate(
            _decode_segment(segment.records)[skipped:], segment.base + skipped
        )
    ]


def missing(partition: int, offset: int, next_offset: int) -> UndecodableRecord:
    """Stands for records that are gone from the file, which only damage can cause."""
    error = "This part of the log is missing from its file."
    return UndecodableRecord(partition=partition, offset=offset, next_offset=next_offset, error=error)


def _segment(partition: int, base: int, records: Sequence[bytes], timestamp_ms: int) -> Segment:
    # A msgpack array is the marker 0xdd, a 32-bit count, and its items one after the other.
    blob = b"\xdd" + len(records).to_bytes(4, "big") + b"".join(records)
    return Segment(partition, base, base + len(records), timestamp_ms, crc32(blob), blob)
