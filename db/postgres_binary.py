"""Many rows and values in the binary formats of Postgres, made without an object of the driver for each.

Formats: <https://www.postgresql.org/docs/current/sql-copy.html> (Binary Format), and `array_send`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import islice
from struct import Struct
from typing import Final

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from db.batch import ValidRecord
from events.event import microseconds

EVENT_COLUMNS: Final = """topic, source, seq, stored_at, occurred_at, received_at, log_offset, log_partition,
    log_incarnation, event_id, payload"""
"""The columns of `pack_events`."""

# COPY: a header, then per row the number of fields and, per field, its length and bytes.
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"
_FIELDS: Final = Struct("!h").pack(EVENT_COLUMNS.count(",") + 1)
_ROW: Final = Struct("!iqiqiqiqiqiiiii")
_ROW_WITHOUT_RECEIVED: Final = Struct("!iqiqiqiiqiiiii")
_LENGTH: Final = Struct("!i")
_NULL: Final = -1
_ROWS_AT_ONCE: Final = 500
_POSTGRES_EPOCH_US: Final = microseconds(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))

# An array: dimensions, whether it has nulls, type, length, first index; per element its length and bytes.
_ARRAY_HEADER: Final = Struct("!iiIii")
_BIGINT: Final = 20
_BIGINT_ARRAY: Final = 1016
_BIGINT_ELEMENT: Final = Struct("!iq")
_UUID: Final = 2950
_UUID_ARRAY: Final = 2951
_UUID_LENGTH: Final = _LENGTH.pack(16)


class Bigints:
    """A parameter of type `bigint[]`."""

    def __init__(self, values: Sequence[int]) -> None:
        pack = _BIGINT_ELEMENT.pack
        self.packed = _array(_BIGINT, len(values)) + b"".join([pack(8, value) for value in values])


class Uuids:
    """A parameter of type `uuid[]`, of values of 16 bytes."""

    def __init__(self, values: Sequence[bytes]) -> None:
        parts = [_array(_UUID, len(values)), *values]
        self.packed = _UUID_LENGTH.join(parts)


class _BigintsDumper(Dumper):
    format = Format.BINARY
    oid = _BIGINT_ARRAY

    def dump(self, obj: Bigints) -> Buffer:
        return obj.packed


class _UuidsDumper(Dumper):
    format = Format.BINARY
    oid = _UUID_ARRAY

    def dump(self, obj: Uuids) -> Buffer:
        return obj.packed


psycopg.adapters.register_dumper(Bigints, _BigintsDumper)
psycopg.adapters.register_dumper(Uuids, _UuidsDumper)


def _array(element: int, length: int) -> bytes:
    return _ARRAY_HEADER.pack(1, 0, element, length, 1)


def pack_events(
    records: Sequence[ValidRecord],
    seqs: Sequence[int],
    omitted: Container[int],
    incarnations: Mapping[int, int],
    stored_at: dt.datetime,
) -> Iterator[bytes]:
    """Rows of the events table for binary COPY, in pieces.

    Args:
        seqs: of each record.
        omitted: indexes of records without a row.
        incarnations: of each partition they come from.
    """
    row, row_without_received, length = _ROW.pack, _ROW_WITHOUT_RECEIVED.pack, _LENGTH.pack
    epoch = _POSTGRES_EPOCH_US
    stored = microseconds(stored_at) - epoch
    heads: dict[tuple[str, str], bytes] = {}
    pieces = [_COPY_HEADER]
    numbered = enumerate(zip(seqs, records, strict=True))
    while some := list(islice(numbered, _ROWS_AT_ONCE)):
        for index, (seq, record) in some:
            if index in omitted:
                continue
            at, event = record.at, record.event
            # Few topics and sources serve many events.
            named = event.topic, event.source
            head = heads.get(named)
            if head is None:
                head = heads[named] = _FIELDS + _text(event.topic) + _text(event.source)
            event_id, payload, partition = event.event_id.encode(), event.payload, at.partition
            # fmt: off
            if at.received_at_us is None:
                fixed = row_without_received(
                    8, seq, 8, stored, 8, event.timestamp_us - epoch, _NULL,
                    8, at.offset, 4, partition, 4, incarnations[partition], len(event_id),
                )
            else:
                fixed = row(
                    8, seq, 8, stored, 8, event.timestamp_us - epoch, 8, at.received_at_us - epoch,
                    8, at.offset, 4, partition, 4, incarnations[partition], len(event_id),
                )
            # fmt: on
            pieces += (head, fixed, event_id, length(len(payload)), payload)
        yield b"".join(pieces)
        pieces.clear()
    yield b"".join((*pieces, _COPY_TRAILER))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded
