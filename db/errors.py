"""What can go wrong with the store.

StoreError              the base; the docstring is the default message
├── StoreUnavailable    wait and try again: outage, failover, deadlock, a timeout, anything unknown
├── SchemaMismatch      stop and alert: the schema is missing, older or newer than the code
├── QueryTimedOut       a read took longer than it may: ask for less
├── RowsRejected        the database refuses what some row contains; `find_rejected` says which
├── FenceLost           another worker has moved the position: nothing was written
├── UnknownDeadLetter   there is no dead letter with this id
├── DeadLetterRefused   its status does not allow this; nothing was changed
├── UnknownOperation    there is no bulk operation with this id
└── OperationLost       the bulk operation is not ours any more: cancelled, or taken over
"""

from __future__ import annotations


class StoreError(Exception):
    """The database reported an error."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class StoreUnavailable(StoreError):
    """The database cannot be used at the moment; try again later."""


class SchemaMismatch(StoreError):
    """The database schema is not the one this version needs; run `aggregator db upgrade`."""


class QueryTimedOut(StoreError):
    """The query took too long and was stopped; narrow it and try again."""


class RowsRejected(StoreError):
    """The database refuses the content of at least one row."""


class FenceLost(StoreError):
    """Another worker has moved the position of a partition; nothing was written."""

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(f"Another worker has moved the position of partition(s) {sorted(partitions)}.")
        self.partitions = partitions


class UnknownDeadLetter(StoreError):
    """There is no dead letter with this id."""


class DeadLetterRefused(StoreError):
    """The status of the dead letter does not allow this; nothing was changed.

    Attributes:
        status: what it is.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class UnknownOperation(StoreError):
    """There is no operation with this id."""


class OperationLost(StoreError):
    """The operation was cancelled, or is carried out by another process."""
