"""Reading a stretch of the log record by record, where the client's own decoder gave up.

The client decodes a batch as a whole or not at all, and a fetch with one bad batch loses the good ones around
it. Here every record that can be read is returned, and what cannot be read is returned as a place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from aiokafka import codec
from aiokafka.record.memory_records import MemoryRecords

from broker.kafka.client import describe
from broker.ports import Record, UndecodableRecord

_PREFIX: Final = struct.Struct(">qi")
_MAGIC_AT: Final = 16
_BATCH_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_CODEC_MASK: Final = 0x07
_APPEND_TIME: Final = 0x08
_ABORT_MARKER: Final = 0
_CODECS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: bytes,
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}


class _Malformed(Exception):
    """The bytes do not follow the record format."""


def salvage(
    raw: bytes,
    *,
    partition: int,
    position: int,
    end: int,
    aborted: Sequence[tuple[int, int]],
    max_records: int,
) -> tuple[list[Record | UndecodableRecord], int]:
    """Read fetched bytes from `position` on.

    Args:
        raw: the record set of a fetch at `position`; its last batch may be cut off.
        end: no offset from here on may be skipped, whatever the bytes say.
        aborted: producer id and first offset of the aborted transactions in this stretch.
        max_records: most to return.

    Returns:
        Records and unreadable places in offset order, and the position after them: beyond the last one where
        transaction markers and aborted records follow. Equal to `position` if `raw` holds no whole batch.
    """
    found: list[Record | UndecodableRecord] = []
    transactions = _Aborted(aborted)
    batches = list(_split(raw))
    for index, batch in enumerate(batches):
        limit = _base_offset(batches[index + 1]) if index + 1 < len(batches) else end
        if limit <= position:
            continue
        for item in _read_batch(batch, partition, position, limit, transactions):
            if isinstance(item, int):
                position = max(position, item)
            elif item.offset >= position:
                found.append(item)
                position = item.next_offset
                if len(found) == max_records:
                    return found, position
    return found, position


class _Aborted:
    """Which batches belong to an aborted transaction, as they come by in order."""

    def __init__(self, aborted: Sequence[tuple[int, int]]) -> None:
        self._pending = sorted(aborted, key=lambda transaction: transaction[1])
        self._producers: set[int] = set()

    def covers(self, batch: Any) -> bool:
        while self._pending and self._pending[0][1] <= batch.base_offset:
            self._producers.add(self._pending.pop(0)[0])
        return batch.is_transactional and batch.producer_id in self._producers

    def close(self, batch: Any) -> None:
        """Take note of a transaction marker."""
        key = next(iter(batch)).key
        if struct.unpack_from(">h", key, 2)[0] == _ABORT_MARKER:
            self._producers.discard(batch.producer_id)


def _split(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start + _PREFIX.size <= len(raw):
        _, length = _PREFIX.unpack_from(raw, start)
        stop = start + _PREFIX.size + length
        if length < 0 or stop > len(raw):
            return
        yield raw[start:stop]
        start = stop


def _base_offset(batch: bytes) -> int:
    return int(_PREFIX.unpack_from(batch)[0])


def _read_batch(
    raw: bytes, partition: int, position: int, limit: int, transactions: _Aborted
) -> Iterator[Record | UndecodableRecord | int]:
    """Records, unreadable places, and last the batch's next offset, not beyond `limit`."""
    first = max(position, _base_offset(raw))
    after = first + 1
    try:
        batch = MemoryRecords(raw).next_batch()
        after = max(after, min(batch.next_offset, limit))
        if not batch.validate_crc():
            raise _Malformed("the checksum does not match")
        if batch.is_control_batch:
            transactions.covers(batch)
            transactions.close(batch)
        elif not transactions.covers(batch):
            whole = _whole(batch, partition, after)
            if whole is not None:
                yield from whole
            elif raw[_MAGIC_AT] < 2:
                raise _Malformed("a record cannot be read")
            else:
                yield from _read_records(raw, partition, after)
    except Exception as error:  # noqa: BLE001 - decoders and codecs raise anything at all for bad bytes
        yield UndecodableRecord(partition=partition, offset=first, next_offset=after, error=describe(error))
    yield after


def _whole(batch: Any, partition: int, after: int) -> list[Record] | None:
    """All records of a batch by the client's own decoder, which is many times faster; None if it gives up."""
    try:
        records = [_record(partition, record) for record in batch]
    except Exception:  # noqa: BLE001 - as above
        return None
    offsets = [record.offset for record in records]
    if any(later <= earlier for earlier, later in pairwise([batch.base_offset - 1, *offsets, after])):
        return None
    return records


def _record(partition: int, record: Any) -> Record:
    return Record(
        partition=partition,
        offset=record.offset,
        timestamp_ms=-1 if record.timestamp is None else record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )


def _read_records(raw: bytes, partition: int, after: int) -> Iterator[Record | UndecodableRecord]:
    """The records of a batch whose checksum is right; one that cannot be read does not hide the others."""
    base, _, _, _, _, attributes, _, first_time, last_time, _, _, _, count = _BATCH_HEADER.unpack_from(raw)
    decode = _CODECS.get(attributes & _CODEC_MASK)
    if decode is None:
        raise _Malformed(f"the compression codec {attributes & _CODEC_MASK} is unknown")
    cursor = _Cursor(decode(raw[_BATCH_HEADER.size :]))
    offset = base
    for _ in range(count):
        if offset >= after:
            # The batch counts more records than it has offsets; the next one is another batch's.
            return
        try:
            length = cursor.varint()
            record = _Cursor(cursor.take(length))
        except _Malformed as error:
            # Where the next record starts is lost with this one's length.
            yield UndecodableRecord(partition=partition, offset=offset, next_offset=after, error=str(error))
            return
        try:
            record.take(1)
            time_delta = record.varint()
            claimed = base + record.varint()
            if not offset <= claimed < after:
                raise _Malformed("an offset lies outside its batch")
            offset = claimed
            key, value = record.field(), record.field()
            headers = tuple((_text(record.field()), record.field()) for _ in range(record.varint()))
        except (_Malformed, UnicodeDecodeError) as error:
            yield UndecodableRecord(
                partition=partition, offset=offset, next_offset=offset + 1, error=describe(error)
            )
        else:
            timestamp = last_time if attributes & _APPEND_TIME else first_time + time_delta
            yield Record(
                partition=partition,
                offset=offset,
                timestamp_ms=timestamp,
                key=key,
                value=value,
                headers=headers,
            )
        offset += 1


def _text(value: bytes | None) -> str:
    if value is None:
        raise _Malformed("a header has no key")
    return value.decode()


class _Cursor:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def take(self, length: int) -> bytes:
        stop = self._at + length
        if length < 0 or stop > len(self._raw):
            raise _Malformed("a length points outside its record")
        taken = self._raw[self._at : stop]
        self._at = stop
        return taken

    def varint(self) -> int:
        """A zigzag-encoded integer of up to 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
        raise _Malformed("an integer has too many bytes")

    def field(self) -> bytes | None:
        length = self.varint()
        return None if length == -1 else self.take(length)
