"""Every record the log holds below the stored positions, compared with the verdict the store has for it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from broker.errors import OffsetOutOfRange
from broker.ports import LogReader, Record, UndecodableRecord
from db.counts import Counts
from db.engine import Engine
from db.findings import Check, Findings
from db.recorded_verdicts import RecordedVerdict, recorded_verdicts
from db.store_snapshot import HeldRows, StoredPosition, StoreSnapshot, read_positions
from events.verdict import Verdict
from stream_worker.decode import decode_records, fingerprint

_SLICE: Final = 2_000
"""Records looked up in one transaction."""


class LogScan:
    """Reads the log, partition by partition, a stretch at a time.

    Below a position nothing changes any more, so the scan needs no snapshot, and what workers and producers
    do meanwhile does no harm. What retention removes before it is read is left out.

    Args:
        beginnings: where to begin in each partition: the log's beginning before the snapshot was taken.
        progress: called with the number of records read so far.
    """

    def __init__(
        self,
        reader: LogReader,
        engine: Engine,
        log_topic: str,
        snapshot: StoreSnapshot,
        beginnings: dict[int, int],
        progress: Callable[[int], None],
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._log_topic = log_topic
        self._snapshot = snapshot
        self._beginnings = beginnings
        self._progress = progress
        self.records = 0
        self.forgotten = 0
        """Records whose identity may have been removed because of its age: nothing can be said of them."""

    async def partition(self, position: StoredPosition, findings: Findings) -> bool:
        """Compare one partition with the store.

        Returns:
            False if the partition began a new incarnation meanwhile, so that nothing can be said of the old.

        Raises:
            BrokerError, StoreError: the scan could not be finished.
        """
        found = Findings()
        beginning = self._beginnings.get(position.partition, 0)
        scan = _PartitionScan(
            position,
            beginning,
            knows_origin=self._snapshot.only_log_topic,
            forgotten_before=self._snapshot.retention.identities.before_at,
        )
        while scan.offset < position.next_offset:
            try:
                poll = await self._reader.read(position.partition, scan.offset, position.next_offset)
            except OffsetOutOfRange:
                held = (await self._reader.offsets())[position.partition]
                if held.beginning <= scan.offset:
                    break  # Truncated: whoever asks for the position next will find out.
                scan.skip_to(min(held.beginning, position.next_offset))
                continue
            for start in range(0, len(poll.records), _SLICE):
                await asyncio.to_thread(self._look_up, scan, poll.records[start : start + _SLICE], found)
            scan.offset = poll.next_offsets[position.partition]
            self.records += len(poll.records)
            self._progress(self.records)
        if scan.offset == position.next_offset:
            number = position.partition
            held_rows = self._snapshot.held[number] if self._snapshot.only_log_topic else None
            scan.compare(self._snapshot.counts.get(number, Counts()), held_rows, found)
        self.forgotten += scan.forgotten
        if len(found):
            now = await asyncio.to_thread(read_positions, self._engine, self._log_topic)
            if now[position.partition].incarnation != position.incarnation:
                return False
        findings.extend(found)
        return True

    def _look_up(
        self, scan: _PartitionScan, records: Sequence[Record | UndecodableRecord], found: Findings
    ) -> None:
        decoded = decode_records(records)
        verdicts = recorded_verdicts(self._engine, self._log_topic, scan.position.incarnation, decoded)
        for record, verdict in zip(records, verdicts, strict=True):
            scan.take(record, verdict, found)


class _PartitionScan:
    """What was read of one partition, and what the store had to say about it."""

    def __init__(
        self,
        position: StoredPosition,
        beginning: int,
        *,
        knows_origin: bool,
        forgotten_before: dt.datetime | None,
    ) -> None:
        self.position = position
        # An identity that was forgotten and came again is stored for a second time: which one a record is
        # about cannot be told either.
        self._knows_origin = knows_origin and forgotten_before is None
        self._forgotten_before = forgotten_before
        self.forgotten = 0
        self.offset = min(beginning, position.next_offset)
        self._from_zero = beginning == 0
        self._skipped = False
        self._verdicts: Counter[Verdict] = Counter()
        self._uncertain = 0
        self._last: Record | UndecodableRecord | None = None

    def skip_to(self, offset: int) -> None:
        """Retention was faster than the scan."""
        self.offset = offset
        self._skipped = True

    def take(self, record: Record | UndecodableRecord, recorded: RecordedVerdict, found: Findings) -> None:
        self._last = record
        where = f"The record at offset {record.offset:,} of partition {record.partition}"
        if recorded.verdict is None and self._may_be_forgotten(record, recorded):
            self.forgotten += 1
            return
        if recorded.verdict is None:
            found.add(Check.RECORD_WITHOUT_VERDICT, f"{where} {recorded.why}.", record.partition)
            return
        self._verdicts[recorded.verdict] += 1
        self._uncertain += not recorded.certain
        if recorded.twice:
            sentence = f"{where} is stored as an event and kept as a dead letter besides."
            found.add(Check.RECORD_WITH_TWO_VERDICTS, sentence, record.partition)

    def _may_be_forgotten(self, record: Record | UndecodableRecord, recorded: RecordedVerdict) -> bool:
        """By the log's own clock, the only one that is not the event's."""
        if self._forgotten_before is None or isinstance(record, UndecodableRecord):
            return False
        return (
            recorded.is_unknown_identity and record.timestamp_ms < self._forgotten_before.timestamp() * 1_000
        )

    def compare(self, counts: Counts, held: HeldRows | None, found: Findings) -> None:
        """Compare the sums; called when everything below the position has been read.

        Args:
            held: rows of the snapshot from where the scan began; None if they cannot be told.
        """
        self._compare_last(found)
        self._compare_counters(counts, found)
        if held is None or self._skipped or self._uncertain or self._forgotten_before is not None:
            return
        letters = self._verdicts[Verdict.CONFLICT] + self._verdicts[Verdict.DEAD_LETTERED]
        for what, rows, records in (
            ("events", held.events, self._verdicts[Verdict.STORED]),
            ("dead letters", held.dead_letters, letters),
        ):
            if rows > records:
                found.add(
                    Check.ROW_WITHOUT_RECORD,
                    f"Partition {self.position.partition}: {rows:,} {what} come from offsets the log holds,"
                    f" but it has records for {records:,} of them.",
                    self.position.partition,
                )

    def _compare_last(self, found: Findings) -> None:
        expected, last = self.position.fingerprint, self._last
        if expected is None or last is None or fingerprint(last) in (expected, None):
            return
        found.add(
            Check.LOG_REPLACED,
            f"Partition {self.position.partition}: the record at offset {last.offset:,} is not the one that"
            " got its verdict: the log topic was recreated, and no worker has taken note.",
            self.position.partition,
        )

    def _compare_counters(self, counts: Counts, found: Findings) -> None:
        """Counters hold all that was ever read; the log may have lost some of it, and then says less."""
        by_log = Counts(*(self._verdicts[verdict] for verdict in Verdict))
        whole = (
            self._from_zero and not self._skipped and not self.forgotten and self.position.incarnation == 1
        )
        left, right = by_log, counts
        if self._uncertain or not self._knows_origin:
            # What was stored, and what is a duplicate of it, cannot be told apart for sure.
            left, right = (
                one._replace(stored=one.stored + one.duplicate, duplicate=0) for one in (left, right)
            )
        if left == right if whole else all(a <= b for a, b in zip(left, right, strict=True)):
            return
        found.add(
            Check.LOG_COUNTER,
            f"Partition {self.position.partition}: below the position the log holds"
            f" {'' if whole else 'at least '}{_in_words(by_log)}, but counted are {_in_words(counts)}.",
            self.position.partition,
        )


def _in_words(counts: Counts) -> str:
    verdicts = ", ".join(f"{getattr(counts, verdict):,} {verdict}" for verdict in Verdict)
    return f"{counts.received:,} records ({verdicts})"
