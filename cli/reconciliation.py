"""Log and store compared: everything `aggregator verify` does, but printing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

import msgspec

from broker.ports import LogReader, PartitionOffsets
from cli.log_scan import LogScan
from db.engine import Engine
from db.findings import Check, Finding, Findings
from db.key_walk import walk_events
from db.stats_queries import Gap
from db.store_snapshot import StoredPosition, StoreSnapshot, read_positions, take_snapshot

SETTLE_SECONDS: Final = 10.0
"""How long a new leader of a partition may know less of it than the old one did."""
_LOOK_AGAIN_SECONDS: Final = 0.5

Progress = Callable[[str, int, int], None]
"""Told what is being done, how far it has come, and how far it will go."""


class Checked(msgspec.Struct, frozen=True):
    """How much was compared. `records` and `events_by_key` are 0 if only counts were."""

    partitions: int
    records: int
    events: int
    events_by_key: int
    dead_letters: int
    lag: int


class Report(msgspec.Struct, frozen=True):
    """What came out.

    Attributes:
        findings: what does not agree, some of each check; `findings_total` is how many there are.
        gaps: known ones, newest first. They are no findings: an operator has been told.
        notes: what could not be compared, and why.
    """

    log_topic: str
    ok: bool
    findings: list[Finding]
    findings_total: int
    findings_by_check: dict[str, int]
    gaps: list[Gap]
    notes: list[str]
    checked: Checked


async def reconcile(
    reader: LogReader,
    engine: Engine,
    log_topic: str,
    *,
    counts_only: bool = False,
    progress: Progress = lambda *_: None,
) -> Report:
    """Compare the log with the store, and the store with itself. Nothing is written anywhere.

    Safe on a running system: the store is counted in one transaction that sees one moment, and only what lies
    below the positions of that moment is read from the log; there nothing changes any more.

    Args:
        reader: started; the caller stops it.
        engine: best a `read_only` one.
        counts_only: neither read the log nor look at every event; compare counts and positions.

    Raises:
        BrokerError, StoreError: it could not be finished.
    """
    findings, notes = Findings(), list[str]()
    progress("counting", 0, 1)
    # Before the store: a commit, and the beginning of the log, are never ahead of a later position.
    committed, before = await reader.committed(), await reader.offsets()
    beginnings = {number: held.beginning for number, held in before.items()}
    snapshot = await asyncio.to_thread(take_snapshot, engine, log_topic, beginnings, findings)
    progress("counting", 1, 1)
    positions = _Positions(reader, engine, log_topic, snapshot)
    sound = await positions.compare(committed, findings, notes)
    if not snapshot.only_log_topic:
        notes.append(
            "The database was filled from more than one log topic; which one an event came from is not"
            " recorded, so some comparisons of events with the log were left out."
        )
    records = walked = 0
    if not counts_only:
        total = snapshot.events
        walked = await asyncio.to_thread(
            walk_events, engine, snapshot, findings, lambda done: progress("events and keys", done, total)
        )
        below = sum(max(0, p.next_offset - beginnings.get(p.partition, 0)) for p in sound)
        scan = LogScan(
            reader, engine, log_topic, snapshot, beginnings, lambda done: progress("log", done, below)
        )
        for position in sound:
            if not await scan.partition(position, findings):
                notes.append(begun_anew(position.partition))
        records = scan.records
        if scan.forgotten:
            notes.append(
                f"{scan.forgotten:,} records of the log are older than the identities that are kept; their"
                " verdicts were not compared."
            )
    return Report(
        log_topic=log_topic,
        ok=not findings,
        findings=findings.kept,
        findings_total=len(findings),
        findings_by_check={str(check): count for check, count in findings.counts.items()},
        gaps=list(snapshot.gaps),
        notes=notes,
        checked=Checked(
            partitions=len(snapshot.positions),
            records=records,
            events=snapshot.events,
            events_by_key=walked,
            dead_letters=snapshot.dead_letters,
            lag=positions.lag,
        ),
    )


class _Positions:
    """The stored positions against the log."""

    def __init__(self, reader: LogReader, engine: Engine, log_topic: str, snapshot: StoreSnapshot) -> None:
        self._reader = reader
        self._engine = engine
        self._log_topic = log_topic
        self._positions = snapshot.positions
        self.lag = 0

    async def compare(
        self, committed: Mapping[int, int | None], findings: Findings, notes: list[str]
    ) -> list[StoredPosition]:
        """Note positions outside the log, and commits ahead of them. Returns the positions in the log."""
        held = await self._settled()
        now = await asyncio.to_thread(read_positions, self._engine, self._log_topic)
        sound = []
        for number, position in sorted(self._positions.items()):
            there = held.get(number)
            latest = now.get(number, position)
            if latest.incarnation != position.incarnation:
                notes.append(begun_anew(number))
                continue
            trouble = _outside(position, latest, there)
            if trouble is not None:
                findings.add(Check.POSITION_OUTSIDE_LOG, f"Partition {number}: {trouble}", number)
            if there is None or position.next_offset > there.end:
                continue
            sound.append(position)
            # A commit beyond the end is left over from a log that was cut off, where nothing came since.
            commit = committed.get(number) or 0
            if position.next_offset < commit <= there.end:
                findings.add(
                    Check.COMMIT_BEYOND_POSITION,
                    f"Partition {number}: the group has committed offset {commit:,}, beyond the stored"
                    f" position {position.next_offset:,}.",
                    number,
                )
        stored = {number: one.next_offset for number, one in self._positions.items()}
        self.lag = sum(
            max(0, one.end - max(one.beginning, stored.get(number, 0))) for number, one in held.items()
        )
        return sound

    async def _settled(self) -> dict[int, PartitionOffsets]:
        """The log's offsets, asked again while a position lies beyond the end: after a change of leader the
        new one may need a moment to know what is committed."""
        deadline = monotonic() + SETTLE_SECONDS
        while True:
            held = await self._reader.offsets()
            beyond = [
                number
                for number, one in self._positions.items()
                if number in held and one.next_offset > held[number].end
            ]
            if not beyond or monotonic() > deadline:
                return held
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def _outside(position: StoredPosition, latest: StoredPosition, there: PartitionOffsets | None) -> str | None:
    """What is wrong with a position, given the one stored a little later and what the log holds between."""
    if there is None:
        return "it has a stored position, but the log has no such partition."
    if position.next_offset > there.end:
        return (
            f"the stored position is {position.next_offset:,}, beyond the end of the log at {there.end:,}:"
            " records were lost or the topic was recreated, and no worker has taken note."
        )
    if latest.next_offset < there.beginning:
        return (
            f"offsets {latest.next_offset:,} to {there.beginning:,} are gone from the log before they got a"
            " verdict, and no worker has taken note."
        )
    return None


def begun_anew(partition: int) -> str:
    """The note about a partition that cannot be compared."""
    return f"Partition {partition} began a new incarnation during the run and was left out; run this again."
