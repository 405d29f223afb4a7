"""Transactions that only read, for a bounded time."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from db.engine import transaction
from db.errors import QueryTimedOut

_INSTRUCTIONS_PER_LOOK: Final = 20_000
"""SQLite looks at the clock after so many of its instructions: some tenths of a millisecond."""


@contextmanager
def read_transaction(engine: Engine, timeout: float, *, advice: str | None = None) -> Iterator[Connection]:
    """A transaction for reading, in which no statement runs for longer than `timeout` seconds (Postgres; on
    SQLite all of them together). As a whole it is bounded like every `db.engine.transaction`.

    Args:
        advice: what to say when a statement was stopped; how to ask for less.

    Raises:
        QueryTimedOut: a statement ran for longer and was stopped.
        StoreUnavailable, SchemaMismatch: as `db.engine.transaction`.
    """
    with transaction(engine) as connection:
        try:
            with _bounded(connection, timeout):
                yield connection
        except DBAPIError as error:
            if _was_stopped(error.orig):
                raise QueryTimedOut(advice) from error
            raise


@contextmanager
def _bounded(connection: Connection, timeout: float) -> Iterator[None]:
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        connection.execute(
            # To compile a plan takes longer than to answer from an index.
            text(
                "SELECT set_config('statement_timeout', :milliseconds, true), set_config('jit', 'off', true)"
            ),
            {"milliseconds": str(math.ceil(timeout * 1000))},
        )
        yield
        return
    # SQLite has no setting for it, but can be asked to stop.
    end = monotonic() + timeout
    raw.set_progress_handler(lambda: monotonic() > end, _INSTRUCTIONS_PER_LOOK)
    try:
        yield
    finally:
        raw.set_progress_handler(None, 0)


def _was_stopped(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
    return isinstance(error, psycopg.errors.QueryCanceled)
