"""What waits to be sent to a partition."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from broker.ports import Headers, NewRecord

RECORD_FRAME_BYTES: Final = 64
"""More than the framing of a record, and a part of its batch's, takes."""
_HEADER_FRAME_BYTES: Final = 10


class BatchBuilder(Protocol):
    """aiokafka's builder of a record batch."""

    def append(
        self, offset: int, timestamp: int, key: bytes, value: bytes, headers: list[tuple[str, bytes | None]]
    ) -> object | None:
        """Add a record; returns None when it does not fit any more.

        Args:
            offset: in the batch, from 0.
            timestamp: milliseconds since 1970.
        """

    def build(self) -> bytes | bytearray:
        """The batch as it is sent. Once."""


class Publish:
    """One call of `Producer.publish`: done when every record is durable, or when one of them failed."""

    __slots__ = ("done", "shares", "unacknowledged")

    def __init__(self, records: int, done: asyncio.Future[None]) -> None:
        self.done = done
        self.shares: list[tuple[Lane, Share]] = []
        self.unacknowledged = records

    def acknowledge(self, records: int) -> None:
        self.unacknowledged -= records
        if self.unacknowledged == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Share:
    """The records of one publish for one partition. Those before `taken` are in a batch."""

    __slots__ = ("publish", "records", "size", "taken")

    def __init__(self, publish: Publish) -> None:
        self.publish = publish
        self.records: list[NewRecord] = []
        self.size = 0
        self.taken = 0

    def size_of(self, start: int, stop: int) -> int:
        if start == 0 and stop == len(self.records):
            return self.size
        return sum(map(record_size, self.records[start:stop]))


class Batch:
    """Records that are sent together: slices of shares, in order.

    Attributes:
        data: what is sent, once it is full.
        started: by the monotonic clock.
    """

    __slots__ = ("data", "parts", "records", "size", "started")

    def __init__(self) -> None:
        self.data: bytes | bytearray = b""
        self.started = time.monotonic()
        self.parts: list[tuple[Share, int, int]] = []
        self.records = 0
        self.size = 0

    def acknowledge(self) -> None:
        for share, start, stop in self.parts:
            share.publish.acknowledge(stop - start)

    def fail(self, error: Exception) -> None:
        for share, _, _ in self.parts:
            share.publish.fail(error)


class Lane:
    """The records waiting for one partition, in the order of their publishes, and the batch being sent.

    There is one batch at a time, so records of one partition never overtake each other; whatever arrives
    meanwhile forms the next batch.

    Attributes:
        is_idle: nothing waits, and nothing is being sent.
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.pending: deque[Share] = deque()
        self.batch: Batch | None = None
        self.is_idle = True
        self._most_records: int | None = None

    def load(self, create_builder: Callable[[], BatchBuilder]) -> Batch | None:
        """The batch to be sent: that of before if there is one, else of what waits; None if nothing does."""
        if self.batch is None and self.pending:
            builder = create_builder()
            # At once: if anything below fails, what was moved is found here by whoever gives it up.
            batch = self.batch = Batch()
            self._fill(batch, builder)
            batch.data = builder.build()
        return self.batch

    def _fill(self, batch: Batch, builder: BatchBuilder) -> None:
        """Move waiting records into a batch until it is full."""
        append = builder.append
        now = int(time.time() * 1_000)
        appended = 0
        headers: Headers = ()
        header_list: list[tuple[str, bytes | None]] = []
        while self.pending:
            share = self.pending[0]
            records = share.records
            start = position = share.taken
            end = len(records)
            if self._most_records is not None:
                end = min(end, start + self._most_records - batch.records)
            while position < end:
                record = records[position]
                if record.headers is not headers:
                    # The records of a publish mostly share their headers; the client wants a list.
                    headers = record.headers
                    header_list = list(headers)
                if append(appended, now, record.key, record.value, header_list) is None:
                    break
                appended += 1
                position += 1
            if position > start:
                share.taken = position
                batch.parts.append((share, start, position))
                batch.records += position - start
                batch.size += share.size_of(start, position)
            if position < len(records):
                break
            self.pending.popleft()

    def split(self, batch: Batch) -> tuple[int, int]:
        """Take back a batch that was too large for the broker; the next ones hold half as many records.

        Returns:
            Records and bytes that nobody waits for any more; they are not taken back.
        """
        self._most_records = max(1, batch.records // 2)
        records = size = 0
        for share, start, stop in reversed(batch.parts):
            if share.publish.done.done():
                records += stop - start
                size += share.size_of(start, stop)
                continue
            share.taken = start
            if not self.pending or self.pending[0] is not share:
                self.pending.appendleft(share)
        return records, size

    def withdraw(self, share: Share) -> tuple[int, int]:
        """Remove what has not been handed to the client of a share; returns records and bytes removed."""
        if share not in self.pending:
            return 0, 0
        self.pending.remove(share)
        return len(share.records) - share.taken, share.size_of(share.taken, len(share.records))


def record_size(record: NewRecord) -> int:
    """Bytes the record takes in a batch before compression, rounded up."""
    return RECORD_FRAME_BYTES + len(record.key) + len(record.value) + headers_size(record.headers)


def headers_size(headers: Iterable[tuple[str, bytes | None]]) -> int:
    return sum(_HEADER_FRAME_BYTES + len(name.encode()) + len(value or b"") for name, value in headers)
