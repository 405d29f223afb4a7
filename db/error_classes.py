"""What a driver's error means for us: the one place that looks at driver errors.

By class and code, never by text:

| Postgres                                            | SQLite                          | means            |
|-----------------------------------------------------|---------------------------------|------------------|
| 22*, 23*, 54*, a `DataError` without a code         | CONSTRAINT, MISMATCH, TOOBIG    | RowsRejected     |
| 42*                                                 | ERROR (no such table or column) | SchemaMismatch   |
| 08*, 40*, 53*, 55P03, 57*, 25006, anything else     | BUSY, LOCKED, FULL, IOERR, else | StoreUnavailable |
| 23514 that names no constraint (partition routing)  |                                 | StoreUnavailable |

Text that cannot be encoded and numbers beyond 64 bits never reach the database; both are RowsRejected.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
import sqlalchemy.exc

from db.errors import RowsRejected, SchemaMismatch, StoreError, StoreUnavailable

_REJECTED_CLASSES: Final = frozenset({"22", "23", "54"})
_SCHEMA_CLASS: Final = "42"
_CHECK_VIOLATION: Final = "23514"
_STALE_STATES: Final = frozenset({"25006", "57P01", "57P02", "57P03", "57P05"})

_SQLITE_REJECTED: Final = frozenset(
    {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}
)
_SQLITE_PRIMARY_CODE: Final = 0xFF

_CONTENT_ERRORS: Final = (UnicodeEncodeError, OverflowError)
DRIVER_ERRORS: Final = (
    sqlalchemy.exc.StatementError,
    sqlalchemy.exc.TimeoutError,
    psycopg.Error,
    sqlite3.Error,
    *_CONTENT_ERRORS,
)


@contextmanager
def translated() -> Iterator[None]:
    """Raise the `db.errors` type that a driver's error means, `from` that error. Other exceptions pass.

    Raises:
        StoreUnavailable, SchemaMismatch, RowsRejected.
    """
    try:
        yield
    except DRIVER_ERRORS as error:
        raise store_error(error) from error


def store_error(error: BaseException) -> StoreError:
    """The store's error for a driver's error."""
    original = _original(error)
    words = describe(original)
    if isinstance(original, _CONTENT_ERRORS):
        return RowsRejected(f"A value cannot be sent to the database: {words}")
    if isinstance(original, psycopg.Error):
        kind = _postgres_kind(original)
    elif isinstance(original, sqlite3.Error):
        kind = _sqlite_kind(original)
    else:
        kind = StoreUnavailable
    if kind is RowsRejected:
        return RowsRejected(f"The database refuses the content of a row: {words}")
    if kind is SchemaMismatch:
        return SchemaMismatch(
            f"The database does not have the schema or the rights this version needs: {words}."
            " Run `aggregator db upgrade`, and look at the rights of the database user."
        )
    return StoreUnavailable(f"The database cannot be used at the moment: {words}")


def describe(error: BaseException) -> str:
    """The database's own words, one line, with its code; without the values of the row."""
    original = _original(error)
    if isinstance(original, psycopg.Error):
        primary = original.diag.message_primary or _first_line(original)
        return f"{primary} ({original.sqlstate})" if original.sqlstate else primary
    if isinstance(original, UnicodeEncodeError):
        return f"{original.reason} (at character {original.start:,})"
    name = getattr(original, "sqlite_errorname", None)
    words = _first_line(original)
    return f"{words} ({name})" if name else words


def leaves_stale_connection(error: BaseException) -> bool:
    """Whether the connection that gave this error is of no more use although it may still be open: the
    server is shutting down, or has become a read-only standby."""
    original = _original(error)
    return isinstance(original, psycopg.Error) and original.sqlstate in _STALE_STATES


def _original(error: BaseException) -> BaseException:
    while isinstance(error, sqlalchemy.exc.StatementError) and error.orig is not None:
        error = error.orig
    return error


def _postgres_kind(error: psycopg.Error) -> type[StoreError]:
    state = error.sqlstate
    if state is None:
        # psycopg itself refuses some values, such as text with a NUL, before any server could give a code.
        return RowsRejected if isinstance(error, psycopg.DataError) else StoreUnavailable
    if state == _CHECK_VIOLATION and error.diag.constraint_name is None:
        # Not a constraint but the routing to a partition: one was attached while the row was on its way.
        return StoreUnavailable
    if state[:2] in _REJECTED_CLASSES:
        return RowsRejected
    return SchemaMismatch if state[:2] == _SCHEMA_CLASS else StoreUnavailable


def _sqlite_kind(error: sqlite3.Error) -> type[StoreError]:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return RowsRejected if isinstance(error, sqlite3.DataError) else StoreUnavailable
    primary = code & _SQLITE_PRIMARY_CODE
    if primary in _SQLITE_REJECTED:
        return RowsRejected
    return SchemaMismatch if primary == sqlite3.SQLITE_ERROR else StoreUnavailable


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
