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

EVENT_COLUMNS: Final = """topic, source, seq, stored_at, log_incarnation, log_partition, log_offset,
    occurred_at, received_at, event_id, payload"""
"""The columns of `EventRows`."""

# COPY: a header, then per row the number of fields and, per field, its length and bytes.
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"
_FIELDS: Final = Struct("!h").pack(EVENT_COLUMNS.count(",") + 1)
_GIVEN: Final = Struct("!iqiqii")
_KNOWN: Final = Struct("!iiiqiqiqi")
_KNOWN_WITHOUT_RECEIVED: Final = Struct("!iiiqiqii")
_LENGTH: Final = Struct("!i")
_NULL: Final = -1
_ROWS_AT_ONCE: Final = 500
# Text that cannot be encoded: the database refuses its row, which makes a dead letter of it alone.
_LEFT_TO_THE_DATABASE: Final = "surrogatepass"
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


class EventRows:
    """Rows of the events table for binary COPY, made up to what only the transaction can say."""

    def __init__(self, records: Sequence[ValidRecord]) -> None:
        known, known_without_received, length = _KNOWN.pack, _KNOWN_WITHOUT_RECEIVED.pack, _LENGTH.pack
        epoch = _POSTGRES_EPOCH_US
        heads: dict[tuple[str, str], bytes] = {}
        # One list for each part: a tuple for each row would be one more object for the garbage collector.
        self._heads: list[bytes] = []
        self._rests: list[bytes] = []
        self._payloads: list[bytes] = []
        self._partitions: list[int] = []
        for record in records:
            at, event = record.at, record.event
            # Few topics and sources serve many events.
            named = event.topic, event.source
            head = heads.get(named)
            if head is None:
                head = heads[named] = _FIELDS + _text(event.topic) + _text(event.source)
            payload, partition = event.payload, at.partition
            event_id = event.event_id.encode(errors=_LEFT_TO_THE_DATABASE)
            occurred = event.timestamp_us - epoch
            if at.received_at_us is None:
                fixed = known_without_received(4, partition, 8, at.offset, 8, occurred, _NULL, len(event_id))
            else:
                received = at.received_at_us - epoch
                fixed = known(4, partition, 8, at.offset, 8, occurred, 8, received, len(event_id))
            self._heads.append(head)
            self._rests.append(b"%b%b%b" % (fixed, event_id, length(len(payload))))
            self._payloads.append(payload)
            self._partitions.append(partition)

    def pack(
        self,
        seqs: Sequence[int],
        omitted: Container[int],
        incarnations: Mapping[int, int],
        stored_at: dt.datetime,
    ) -> Iterator[bytes]:
        """The rows, in pieces.

        Args:
            seqs: of each record.
            omitted: indexes of records without a row.
            incarnations: of each partition they come from.
        """
        given = _GIVEN.pack
        stored = microseconds(stored_at) - _POSTGRES_EPOCH_US
        pieces = [_COPY_HEADER]
        parts = zip(seqs, self._partitions, self._heads, self._rests, self._payloads, strict=True)
        numbered = enumerate(parts)
        while some := list(islice(numbered, _ROWS_AT_ONCE)):
            for index, (seq, partition, head, rest, payload) in some:
                if index not in omitted:
                    pieces += (head, given(8, seq, 8, stored, 4, incarnations[partition]), rest, payload)
            yield b"".join(pieces)
            pieces.clear()
        yield b"".join((*pieces, _COPY_TRAILER))


def _text(value: str) -> bytes:
    encoded = value.encode(errors=_LEFT_TO_THE_DATABASE)
    return _LENGTH.pack(len(encoded)) + encoded
