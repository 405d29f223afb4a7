"""The promises, checked from what is really there: the tables, the log itself, and the senders' ledger.

| invariant | says |
|---|---|
| I1 | what was acknowledged is stored, or a conflict, or a dead letter |
| I2 | what is stored was sent, and not refused |
| I3 | one row per identity |
| I4 | counters equal rows, obey the sum rule, and equal what the rules make of the log |
| I5 | a position never moves back within an incarnation |
| I6 | the group's offset is never beyond the database's position |
| I7 | caught up in time once the fault has healed |
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from tests.support.ledger import Ledger, Outcome, Poison, Sent, canonical
from tests.support.log_reader import LogRecord
from tests.support.tables import Counts, Letter, Place, Tables

CONFLICT = "conflicting_duplicate"
_FIELDS = {"topic", "event_id", "timestamp", "source", "payload"}
_SHOWN = 3


class Invariant(StrEnum):
    I1 = "I1 acknowledged ⊆ stored, conflicts and dead letters"
    I2 = "I2 stored ⊆ sent"
    I3 = "I3 one row per identity"
    I4 = "I4 counters = rows = what the log says"
    I5 = "I5 positions never move back"
    I6 = "I6 committed offset ≤ database position"
    I7 = "I7 caught up in time"
    VERIFY = "`aggregator verify` agrees"


@dataclass(frozen=True)
class Violation:
    invariant: Invariant
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


@dataclass
class Samples:
    """Positions and committed offsets, as seen while things went on.

    Attributes:
        positions: in the order of time; partition to (incarnation, next offset).
        commits: pairs of the group's offsets and the positions read just after them.
    """

    positions: list[Mapping[int, tuple[int, int]]] = field(default_factory=list)
    commits: list[tuple[Mapping[int, int], Mapping[int, tuple[int, int]]]] = field(default_factory=list)


def violations(
    tables: Tables,
    log: Sequence[LogRecord],
    ledger: Ledger,
    samples: Samples,
    lost: frozenset[Place] = frozenset(),
) -> list[Violation]:
    """Everything that is wrong, I1 to I6.

    Args:
        log: every record the log ever held, also of incarnations that are gone.
        lost: places in it that were deleted before anybody could read them.
    """
    return [
        *_acknowledged_is_kept(tables, log, ledger, lost),
        *_stored_was_sent(tables, ledger),
        *_one_row_per_identity(tables),
        *_counters_are_exact(tables, [record for record in log if _place(record) not in lost]),
        *_positions_move_on(samples.positions),
        *_commits_follow(samples.commits),
    ]


def parse(value: bytes | None) -> tuple[Sent | None, str]:
    """What a record holds, by the rules, as far as the test loads go: the event, if it is one, and the topic
    it counts under. Written anew here, so that the product's codec is not its own judge."""
    try:
        document: Any = json.loads((value or b"").decode())
    except ValueError:
        return None, ""
    if not isinstance(document, dict):
        return None, ""
    topic = document.get("topic")
    counted = topic if isinstance(topic, str) and topic and "\0" not in topic else ""
    texts = [document.get(name) for name in ("topic", "event_id", "timestamp", "source")]
    valid = (
        set(document) == _FIELDS
        and all(isinstance(text, str) and text and "\0" not in text for text in texts)
        and isinstance(document["payload"], dict)
    )
    if not valid:
        return None, counted
    seconds = int(dt.datetime.fromisoformat(document["timestamp"]).timestamp())
    content = canonical(seconds, document["source"], document["payload"])
    return Sent(document["topic"], document["event_id"], content), counted


def _acknowledged_is_kept(
    tables: Tables, log: Sequence[LogRecord], ledger: Ledger, lost: frozenset[Place]
) -> Iterable[Violation]:
    kept: set[Sent | Poison] = {event for event, _ in tables.events}
    for letter in tables.letters:
        kept.add(Poison(letter.key, letter.value))
        event, _ = parse(letter.value)
        if event is not None:
            kept.add(event)
    for record in log:
        if _place(record) in lost:
            kept.add(parse(record.value)[0] or Poison(record.key, record.value))
    missing = ledger.with_outcome(Outcome.OK) - kept
    if missing:
        yield Violation(Invariant.I1, f"{len(missing)} acknowledged and gone, such as {_some(missing)}")


def _stored_was_sent(tables: Tables, ledger: Ledger) -> Iterable[Violation]:
    possible = ledger.with_outcome(Outcome.OK, Outcome.UNKNOWN)
    strange = {event for event, _ in tables.events} - possible
    if strange:
        yield Violation(Invariant.I2, f"{len(strange)} stored and never sent, such as {_some(strange)}")


def _one_row_per_identity(tables: Tables) -> Iterable[Violation]:
    rows = Counter((event.topic, event.event_id) for event, _ in tables.events)
    repeated = [identity for identity, count in rows.items() if count > 1]
    if repeated:
        yield Violation(Invariant.I3, f"{len(repeated)} stored more than once, such as {_some(repeated)}")
    expected = {blake2b(f"{topic}\0{event_id}".encode(), digest_size=16).digest() for topic, event_id in rows}
    if set(tables.keys) != expected or len(tables.keys) != len(rows):
        yield Violation(Invariant.I3, f"{len(tables.keys)} keys for {len(rows)} identities, or not theirs")


def _counters_are_exact(tables: Tables, log: Sequence[LogRecord]) -> Iterable[Violation]:
    for (partition, topic), counts in tables.counts.items():
        if counts.received != sum(counts[1:]):
            yield Violation(Invariant.I4, f"no sum in partition {partition}, {topic!r}: {counts}")
    yield from _counters_equal_rows(tables)
    yield from _counters_equal_log(tables, log)


def _counters_equal_rows(tables: Tables) -> Iterable[Violation]:
    """Stored rows and dead letters can be counted; per partition, for a letter's topic may be unreadable."""
    events = Counter(place.partition for _, place in tables.events)
    conflicts = Counter(letter.place.partition for letter in tables.letters if letter.reason == CONFLICT)
    letters = Counter(letter.place.partition for letter in tables.letters if letter.reason != CONFLICT)
    for name, rows in (("stored", events), ("conflict", conflicts), ("dead_lettered", letters)):
        counted: Counter[int] = Counter()
        for (partition, _), counts in tables.counts.items():
            counted[partition] += getattr(counts, name)
        if +counted != +rows:
            yield Violation(Invariant.I4, f"{name}, by counter {dict(+counted)}, by rows {dict(+rows)}")


def _counters_equal_log(tables: Tables, log: Sequence[LogRecord]) -> Iterable[Violation]:
    """What the rules make of the log: the first of an identity wins, in the order of its partition.

    Between partitions there is no order, so where an identity is in several of them the store decides which
    of their firsts has won; everything else follows.
    """
    winners = {(event.topic, event.event_id): (event, place) for event, place in tables.events}
    firsts: dict[tuple[str, str], dict[tuple[int, int], Place]] = {}
    expected: dict[tuple[int, str], Counter[str]] = {}
    letters: set[tuple[Place, bool]] = set()
    for record in log:
        place = _place(record)
        event, topic = parse(record.value)
        if event is None:
            verdict = "dead_lettered"
            letters.add((place, False))
        else:
            identity = event.topic, event.event_id
            firsts.setdefault(identity, {}).setdefault((place.partition, place.incarnation), place)
            winner = winners.get(identity)
            if winner is None:
                yield Violation(Invariant.I4, f"{event} is in the log at {place}, and not stored")
                continue
            if winner[1] == place:
                verdict = "stored"
            elif winner[0].content == event.content:
                verdict = "duplicate"
            else:
                verdict = "conflict"
                letters.add((place, True))
        expected.setdefault((place.partition, topic), Counter())[verdict] += 1
    for identity, (event, place) in winners.items():
        if place not in firsts.get(identity, {}).values():
            yield Violation(Invariant.I4, f"{event} is stored from {place}, which is not a first in the log")
    yield from _compare(expected, tables.counts)
    found = Counter((letter.place, letter.reason == CONFLICT) for letter in tables.letters)
    if found != Counter(letters):
        odd = (set(found) ^ letters) | {what for what, count in found.items() if count > 1}
        yield Violation(Invariant.I4, f"{len(odd)} dead letters missing or too many, such as {_some(odd)}")


def _compare(
    expected: Mapping[tuple[int, str], Counter[str]], counted: Mapping[tuple[int, str], Counts]
) -> Iterable[Violation]:
    for where in expected.keys() | counted.keys():
        verdicts = expected.get(where, Counter())
        figures = Counts(verdicts.total(), *(verdicts[name] for name in Counts._fields[1:]))
        if counted.get(where, Counts(0, 0, 0, 0, 0)) != figures:
            yield Violation(
                Invariant.I4,
                f"partition {where[0]}, topic {where[1]!r}: {counted.get(where)}, by the log {figures}",
            )


def _positions_move_on(samples: Sequence[Mapping[int, tuple[int, int]]]) -> Iterable[Violation]:
    last: dict[int, tuple[int, int]] = {}
    for sample in samples:
        for partition, position in sample.items():
            before = last.get(partition)
            if before is not None and position < before:
                yield Violation(Invariant.I5, f"partition {partition} went from {before} back to {position}")
            last[partition] = position


def _commits_follow(
    samples: Sequence[tuple[Mapping[int, int], Mapping[int, tuple[int, int]]]],
) -> Iterable[Violation]:
    for committed, positions in samples:
        for partition, offset in committed.items():
            position = positions.get(partition, (0, 0))[1]
            if offset > position:
                yield Violation(Invariant.I6, f"partition {partition}: {offset} committed, {position} stored")
                return


def _place(record: LogRecord) -> Place:
    return Place(record.partition, record.incarnation, record.offset)


def _some(items: Iterable[Any]) -> str:
    shown = sorted(map(str, items))
    return "; ".join(shown[:_SHOWN]) + (" …" if len(shown) > _SHOWN else "")


__all__ = ["Invariant", "Letter", "Samples", "Violation", "parse", "violations"]
