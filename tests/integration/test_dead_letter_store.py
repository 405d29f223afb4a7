"""Replaying and discarding dead letters, step by step, as the stores keep it."""

from __future__ import annotations

import datetime as dt

import pytest
from sqlalchemy import Engine, text

from db.audit import AuditQueries
from db.dead_letter_queries import DeadLetterQueries, DeadLetterSummary
from db.dead_letter_status import Outcome
from db.dead_letter_store import DeadLetterStore
from db.errors import DeadLetterRefused, OperationLost, UnknownDeadLetter, UnknownOperation
from db.event_filter import AuditFilter, DeadLetterFilter
from db.operation_queries import Kind, Operation, OperationQueries, OperationStatus
from db.operation_store import OperationStore
from tests.support.store_filler import StoreFiller, make_event

NOW = dt.timedelta(0)
AN_HOUR = dt.timedelta(hours=1)


class Shelf:
    """The store's dead letters, and what can be done about them."""

    def __init__(self, writer: Engine, reader: Engine) -> None:
        self.engine = writer
        self.fill = StoreFiller(writer)
        self.store = DeadLetterStore(writer)
        self.letters = DeadLetterQueries(reader, timeout=10)
        self.operations = OperationStore(writer, "here")
        self.read_operations = OperationQueries(reader, timeout=10)
        self.audit = AuditQueries(reader, timeout=10)

    def add(self, *values: bytes | None, **known: object) -> list[int]:
        self.fill.records([(None, {"value": v, "reason": "invalid_json", **known}) for v in values])
        page = self.letters.page(DeadLetterFilter(), limit=len(values))
        return [letter.id for letter in reversed(page.dead_letters)]

    def letter(self, dead_letter_id: int) -> DeadLetterSummary:
        found = self.letters.summary(dead_letter_id)
        assert found is not None
        return found

    def statuses(self, ids: list[int]) -> list[str]:
        return [self.letter(one).status for one in ids]

    def operation(self, operation_id: int) -> Operation:
        found = self.read_operations.show(operation_id)
        assert found is not None
        return found

    def begin(self, kind: Kind = Kind.REPLAY, *, most: int | None = None, dry_run: bool = False) -> int:
        """Create an operation on everything pending, and take it."""
        created = self.operations.create(kind, DeadLetterFilter(), actor="ann", most=most, dry_run=dry_run)
        claimed = self.operations.claim(stale_after=AN_HOUR)
        assert claimed is not None
        assert claimed.id == created.id
        return created.id


@pytest.fixture
def shelf(writer: Engine, reader: Engine) -> Shelf:
    return Shelf(writer, reader)


def counts(operation: Operation) -> tuple[int, int, int, int]:
    return operation.done, operation.skipped, operation.failed, operation.unknown


def test_of_two_operators_one_wins_and_the_other_is_told_why(shelf: Shelf) -> None:
    (letter,) = shelf.add(b"{")
    draft = shelf.store.begin_replay(letter, actor="ann")

    with pytest.raises(DeadLetterRefused, match="is being replayed"):
        shelf.store.begin_replay(letter, actor="bob")
    with pytest.raises(DeadLetterRefused, match="is being replayed"):
        shelf.store.discard(letter, actor="bob")
    assert shelf.store.end_replay(draft, Outcome.ACKNOWLEDGED)
    with pytest.raises(DeadLetterRefused, match="was replayed before"):
        shelf.store.begin_replay(letter, actor="bob")

    done = shelf.letter(letter)
    assert (done.status, done.replays, done.status_changed_by) == ("replayed", 1, "ann")
    assert [(e.actor, e.action) for e in shelf.audit.page(AuditFilter(), limit=10)] == [
        ("ann", "dead_letter.replay")
    ]


def test_a_replay_keeps_the_original_record_as_it_was(shelf: Shelf) -> None:
    headers = (("h", b"\xff"), ("h", None))
    (letter,) = shelf.add(b"\x00\xff", key=b"k", headers=headers)

    draft = shelf.store.begin_replay(letter, actor="ann", edited=b"better")

    assert (draft.key, draft.value, draft.headers, draft.edited) == (b"k", b"better", headers, True)
    shown = shelf.letters.show(letter)
    assert shown is not None
    assert shown.value is not None
    assert shown.replayed_value is not None
    assert (shown.value.base64, shown.replayed_value.base64) == (b"\x00\xff", b"better")


@pytest.mark.parametrize(
    ("outcome", "status"), [(Outcome.NOT_SENT, "pending"), (Outcome.UNKNOWN, "replay_unknown")]
)
def test_what_was_not_replayed_for_sure_can_be_replayed_again(
    shelf: Shelf, outcome: Outcome, status: str
) -> None:
    (letter,) = shelf.add(b"{")
    shelf.store.end_replay(shelf.store.begin_replay(letter, actor="ann"), outcome)
    assert shelf.letter(letter).status == status

    again = shelf.store.begin_replay(letter, actor="bob")
    # Not sent this time; but the time before it may have been.
    assert shelf.store.end_replay(again, Outcome.NOT_SENT)
    assert shelf.letter(letter).status == status


def test_a_replay_whose_process_is_gone_becomes_unknown_and_a_late_end_changes_nothing(shelf: Shelf) -> None:
    (letter,) = shelf.add(b"{")
    late = shelf.store.begin_replay(letter, actor="ann")
    assert shelf.store.give_up_stale(AN_HOUR) == 0
    assert shelf.store.give_up_stale(NOW) == 1
    assert shelf.letter(letter).status == "replay_unknown"

    second = shelf.store.begin_replay(letter, actor="bob")
    assert not shelf.store.end_replay(late, Outcome.NOT_SENT)
    assert shelf.letter(letter).status == "replaying"
    assert shelf.store.end_replay(second, Outcome.ACKNOWLEDGED)


def test_a_record_without_a_value_needs_an_edited_one(shelf: Shelf) -> None:
    (letter,) = shelf.add(None, reason="tombstone")
    with pytest.raises(DeadLetterRefused, match="no value"):
        shelf.store.begin_replay(letter, actor="ann")
    assert shelf.letter(letter).status == "pending"
    assert shelf.store.begin_replay(letter, actor="ann", edited=b"{}").value == b"{}"


def test_a_dead_letter_that_does_not_exist_is_named_so(shelf: Shelf) -> None:
    with pytest.raises(UnknownDeadLetter):
        shelf.store.begin_replay(1, actor="ann")
    with pytest.raises(UnknownDeadLetter):
        shelf.store.discard(1, actor="ann")
    with pytest.raises(UnknownOperation):
        shelf.operations.cancel(1, actor="ann")


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (b"7", 7),
        (b"9223372036854775807", 2**63 - 1),
        (b"9223372036854775808", None),
        *((value, None) for value in (b"-1", b"", None, b"seven", b"\xd9\xa7", b"07")),
    ],
)
def test_the_header_of_a_replay_is_the_parent_of_what_fails_again(
    shelf: Shelf, header: bytes | None, parent: int | None
) -> None:
    (letter,) = shelf.add(b"{", headers=(("replay_of", header),))
    assert shelf.letter(letter).parent_id == parent


def test_the_version_before_can_go_on_writing_dead_letters(shelf: Shelf) -> None:
    (letter,) = shelf.add(b"{")
    columns = (
        "log_topic, log_partition, log_incarnation, reason, error, record_headers, record_timestamp_ms,"
        " created_at, status"
    )
    with shelf.engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO dead_letters (log_offset, {columns}) SELECT 99, {columns} FROM dead_letters")
        )
    newest = shelf.letters.page(DeadLetterFilter(), limit=1).dead_letters[0]
    assert newest.id != letter
    assert (newest.parent_id, newest.replays, newest.status) == (None, 0, "pending")


def test_an_operation_takes_what_matched_at_its_creation_in_order(shelf: Shelf) -> None:
    ids = shelf.add(b"0", b"1", None, b"3", b"4")
    operation = shelf.begin()
    later = shelf.add(b"later")

    first = shelf.operations.take(operation, most_letters=3, most_bytes=10**6)
    assert [d.value for d in first.drafts] == [b"0", b"1"]
    assert shelf.statuses(ids) == ["replaying", "replaying", "pending", "pending", "pending"]
    shelf.operations.settle(operation, [(d, Outcome.ACKNOWLEDGED) for d in first.drafts])
    second = shelf.operations.take(operation, most_letters=3, most_bytes=10**6)
    assert ([d.value for d in second.drafts], second.finished) == ([b"3", b"4"], True)
    outcomes = [(second.drafts[0], Outcome.UNKNOWN), (second.drafts[1], Outcome.NOT_SENT)]
    for _ in range(2):
        shelf.operations.settle(operation, outcomes)  # a repetition counts nothing again
    shelf.operations.end(operation)

    assert shelf.statuses(ids + later) == [
        "replayed",
        "replayed",
        "pending",
        "replay_unknown",
        "pending",
        "pending",
    ]
    shown = shelf.operation(operation)
    assert (counts(shown), shown.status) == ((2, 1, 1, 1), OperationStatus.COMPLETED)
    assert shelf.letter(ids[0]).operation_id == operation
    assert shelf.letter(ids[0]).status_changed_by == "ann"
    assert [e.action.rpartition(".")[2] for e in shelf.audit.page(AuditFilter(), limit=9)] == [
        "end",
        "create",
    ]


def test_values_held_at_once_are_bounded(shelf: Shelf) -> None:
    shelf.add(b"x" * 60, b"y" * 60, b"z" * 200)
    operation = shelf.begin()
    sizes = []
    while True:
        taken = shelf.operations.take(operation, most_letters=10, most_bytes=120)
        sizes.append([len(draft.value) for draft in taken.drafts])
        shelf.operations.settle(operation, [(d, Outcome.ACKNOWLEDGED) for d in taken.drafts])
        if taken.finished:
            break
    assert sizes == [[60, 60], [200]]


def test_a_limit_counts_every_dead_letter_dealt_with(shelf: Shelf) -> None:
    ids = shelf.add(*[b"x"] * 5)
    operation = shelf.begin(Kind.DISCARD, most=3)
    assert not shelf.operations.discard(operation, most_letters=2)
    assert shelf.operations.discard(operation, most_letters=2)
    assert shelf.statuses(ids) == ["discarded"] * 3 + ["pending"] * 2
    assert counts(shelf.operation(operation)) == (3, 0, 0, 0)


def test_a_dry_run_counts_and_changes_nothing(shelf: Shelf) -> None:
    ids = shelf.add(b"x", None, b"y")
    operation = shelf.begin(dry_run=True)
    assert shelf.operations.rehearse(operation)
    assert counts(shelf.operation(operation)) == (2, 1, 0, 0)
    assert shelf.statuses(ids) == ["pending"] * 3


def test_who_takes_an_operation_over_goes_on_behind_what_was_left_half_done(shelf: Shelf) -> None:
    ids = shelf.add(b"0", b"1", b"2", b"3")
    operation = shelf.begin()
    half_done = shelf.operations.take(operation, most_letters=2, most_bytes=10**6)
    # The process ends here: perhaps before, perhaps after the log has the records.
    successor = OperationStore(shelf.engine, "there")
    assert successor.claim(stale_after=AN_HOUR) is None
    assert shelf.store.give_up_stale(NOW) == 0

    taken_over = successor.claim(stale_after=NOW)

    assert taken_over is not None
    assert (counts(taken_over), taken_over.after_id) == ((0, 0, 0, 2), ids[1])
    with pytest.raises(OperationLost):
        shelf.operations.take(operation, most_letters=2, most_bytes=10**6)
    # The first one was only asleep; what it knows comes too late, and counts nothing twice.
    shelf.operations.settle(operation, [(d, Outcome.ACKNOWLEDGED) for d in half_done.drafts])
    rest = successor.take(operation, most_letters=9, most_bytes=10**6)
    successor.settle(operation, [(d, Outcome.ACKNOWLEDGED) for d in rest.drafts])
    successor.end(operation)
    assert counts(shelf.operation(operation)) == (2, 0, 0, 2)
    assert shelf.statuses(ids) == ["replay_unknown"] * 2 + ["replayed"] * 2


def test_an_operation_that_is_let_go_is_taken_up_where_it_was(shelf: Shelf) -> None:
    ids = shelf.add(b"0", b"1", b"2")
    operation = shelf.begin(Kind.DISCARD)
    shelf.operations.discard(operation, most_letters=2)
    shelf.operations.release(operation)
    successor = OperationStore(shelf.engine, "there")
    assert successor.claim(stale_after=AN_HOUR) is not None
    assert successor.discard(operation, most_letters=2)
    assert shelf.statuses(ids) == ["discarded"] * 3


def test_a_cancelled_operation_stops_and_what_is_on_its_way_is_still_noted(shelf: Shelf) -> None:
    ids = shelf.add(b"0", b"1")
    operation = shelf.begin()
    taken = shelf.operations.take(operation, most_letters=1, most_bytes=10**6)
    shelf.operations.cancel(operation, actor="bob")
    shelf.operations.settle(operation, [(taken.drafts[0], Outcome.ACKNOWLEDGED)])
    with pytest.raises(OperationLost):
        shelf.operations.take(operation, most_letters=1, most_bytes=10**6)
    shelf.operations.end(operation)
    with pytest.raises(DeadLetterRefused, match="ended"):
        shelf.operations.cancel(operation, actor="bob")
    shown = shelf.operation(operation)
    assert (counts(shown), shown.status) == ((1, 0, 0, 0), OperationStatus.CANCELLED)
    assert shelf.statuses(ids) == ["replayed", "pending"]


def test_groups_say_how_many_there_are_why_and_what_was_done(shelf: Shelf) -> None:
    ids = shelf.add(b"0", b"1", b"2")
    shelf.add(b"3", reason="schema")
    shelf.store.discard(ids[0], actor="ann")

    first, second = shelf.letters.groups(DeadLetterFilter())

    assert (first.reason, first.count, first.newest_id) == ("invalid_json", 3, ids[2])
    assert first.statuses == {"pending": 2, "discarded": 1}
    assert (second.reason, second.statuses) == ("schema", {"pending": 1})
    assert shelf.letters.groups(DeadLetterFilter(status="replayed")) == []
    assert shelf.letters.count(DeadLetterFilter(reason="invalid_json", status="pending")) == 2


def test_a_conflict_is_shown_with_the_event_that_stays(shelf: Shelf) -> None:
    shelf.fill.events([make_event("a", payload={"n": 1}), make_event("a", payload={"n": 2})])
    (summary,) = shelf.letters.page(DeadLetterFilter(), limit=9).dead_letters
    letter = shelf.letters.show(summary.id)
    assert letter is not None
    assert letter.winner is not None
    assert bytes(letter.winner.payload) == b'{"n": 1}'
