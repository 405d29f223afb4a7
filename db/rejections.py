"""Finding the records of a batch whose content the database refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from db.batch import InvalidRecord, Rejected, ValidRecord
from db.error_classes import describe, translated
from db.errors import RowsRejected, StoreUnavailable

Probe = Callable[[Sequence[ValidRecord]], object]
"""Inserts records with distinct identities."""

_Candidate = tuple[int, ValidRecord]


def find(
    connection: Connection, probe: Probe, records: Sequence[ValidRecord | InvalidRecord], limit: int
) -> list[Rejected]:
    """Bisect, within savepoints, down to the single records that `probe` is refused for.

    Args:
        limit: with more refused records than this the database is taken to be at fault.

    Raises:
        StoreUnavailable: no single record is refused, or more than `limit` are.
    """
    found: dict[int, str] = {}
    waiting = [(index, record) for index, record in enumerate(records) if isinstance(record, ValidRecord)]
    while waiting:
        # A copy of a refused event is never inserted together with it, so it takes another round.
        firsts, copies = _first_of_each(waiting)
        _bisect(connection, probe, firsts, found, limit)
        refused = {record.event.key for index, record in firsts if index in found}
        waiting = [(index, record) for index, record in copies if record.event.key in refused]
    if not found:
        raise StoreUnavailable(
            "The database refuses the batch, but none of its records alone; try again later."
        )
    return [Rejected(index, error) for index, error in sorted(found.items())]


def _bisect(
    connection: Connection, probe: Probe, candidates: Sequence[_Candidate], found: dict[int, str], limit: int
) -> None:
    pending = [candidates]
    while pending:
        some = pending.pop()
        error = _refusal(connection, probe, [record for _, record in some])
        if error is None:
            continue
        if len(some) > 1:
            middle = len(some) // 2
            pending += [some[middle:], some[:middle]]
            continue
        found[some[0][0]] = error
        if len(found) > limit:
            raise StoreUnavailable(
                f"The database refuses more than {limit} records of a batch, the last one because: {error}."
                " That is taken for a fault of the database, so nothing becomes a dead letter."
            )


def _refusal(connection: Connection, probe: Probe, records: Sequence[ValidRecord]) -> str | None:
    """Why the database refuses these records, or None if it takes them; leaves nothing behind."""
    savepoint = connection.begin_nested()
    refusal = None
    try:
        with translated():
            probe(records)
    except RowsRejected as error:
        refusal = describe(error.__cause__ or error)
    # Not after other errors: those may have ended the whole transaction already.
    savepoint.rollback()
    return refusal


def _first_of_each(candidates: Sequence[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
    seen: set[bytes] = set()
    firsts: list[_Candidate] = []
    copies: list[_Candidate] = []
    for index, record in candidates:
        (copies if record.event.key in seen else firsts).append((index, record))
        seen.add(record.event.key)
    return firsts, copies
