"""A driver's error means what its class and code say, whatever its text."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import create_engine, text

from db.error_classes import describe, leaves_stale_connection, store_error, translated
from db.errors import FenceLost, RowsRejected, SchemaMismatch, StoreError, StoreUnavailable

POSTGRES = {
    StoreUnavailable: (
        "08000 08003 08006 08001 08004"  # connection
        " 40001 40P01 40003"  # serialization, deadlock, statement completion unknown
        " 53000 53100 53200 53300"  # resources: disk full, memory, connections
        " 55P03 55006"  # lock not available, object in use
        " 57014 57P01 57P02 57P03 57P05"  # cancelled, shutdown, crash, starting, idle
        " 25006 25P02 25P03"  # read-only, aborted, idle in transaction
        " 23514"  # without the name of a constraint: a partition was attached meanwhile
        " 58030 XX000 0A000 P0001 28P01 3D000"  # anything unknown
    ),
    SchemaMismatch: "42P01 42703 42501 42601 42P07 42883",
    RowsRejected: "22000 22001 22003 22021 22P02 22P03 22P05 23502 23505 23P01 54000 54001",
}

SQLITE = {
    StoreUnavailable: (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_BUSY_SNAPSHOT,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_SCHEMA,
    ),
    SchemaMismatch: (sqlite3.SQLITE_ERROR,),
    RowsRejected: (
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_CONSTRAINT_CHECK,
        sqlite3.SQLITE_CONSTRAINT_NOTNULL,
        sqlite3.SQLITE_CONSTRAINT_TRIGGER,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
    ),
}


class UnlistedState(psycopg.DatabaseError):
    """psycopg has a class for every state it knows; servers may send others."""


def postgres_error(state: str) -> psycopg.Error:
    try:
        return psycopg.errors.lookup(state)("words")
    except KeyError:
        error = UnlistedState("words")
        error.sqlstate = state
        return error


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_NAME"
    return error


@pytest.mark.parametrize(
    ("state", "expected"), [(state, kind) for kind, states in POSTGRES.items() for state in states.split()]
)
def test_a_postgres_error_is_classified_by_its_state(state: str, expected: type[StoreError]) -> None:
    error = postgres_error(state)

    assert error.sqlstate == state
    assert type(store_error(error)) is expected


@pytest.mark.parametrize(
    ("code", "expected"), [(code, kind) for kind, codes in SQLITE.items() for code in codes]
)
def test_an_sqlite_error_is_classified_by_its_code(code: int, expected: type[StoreError]) -> None:
    assert type(store_error(sqlite_error(code))) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.DataError("text cannot contain NUL"), RowsRejected),
        (psycopg.OperationalError("the connection is closed"), StoreUnavailable),
        (psycopg.InterfaceError("the cursor is closed"), StoreUnavailable),
        (sqlite3.DataError("string longer than INT_MAX bytes"), RowsRejected),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), StoreUnavailable),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), RowsRejected),
        (OverflowError("Python int too large to convert to SQLite INTEGER"), RowsRejected),
        (sqlalchemy.exc.TimeoutError("QueuePool limit"), StoreUnavailable),
    ],
)
def test_an_error_without_a_code_is_classified_by_its_class(
    error: Exception, expected: type[StoreError]
) -> None:
    assert type(store_error(error)) is expected


def test_an_error_wrapped_by_sqlalchemy_is_classified_by_what_is_inside() -> None:
    original = postgres_error("22P05")
    wrapped = sqlalchemy.exc.DBAPIError.instance("SELECT 1", None, original, psycopg.Error)

    with pytest.raises(RowsRejected, match="22P05") as raised, translated():
        raise wrapped
    assert raised.value.__cause__ is wrapped


def test_the_text_of_an_error_changes_nothing() -> None:
    assert type(store_error(psycopg.errors.DeadlockDetected("no such table: 42P01"))) is StoreUnavailable


def test_errors_of_ours_and_of_others_pass() -> None:
    for error in (FenceLost(frozenset({1})), ZeroDivisionError()):
        with pytest.raises(type(error)), translated():
            raise error


def test_real_sqlite_errors_have_codes(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'some.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a INTEGER NOT NULL CHECK (a > 0))"))
    cases = {
        "SELECT * FROM missing": SchemaMismatch,
        "SELECT missing FROM t": SchemaMismatch,
        "INSERT INTO t VALUES (0)": RowsRejected,
        "INSERT INTO t VALUES (NULL)": RowsRejected,
        f"INSERT INTO t VALUES ({2**70})": None,
    }
    for statement, expected in cases.items():
        with engine.connect() as connection:
            if expected is None:
                connection.execute(text(statement))
                continue
            with pytest.raises(expected), translated():
                connection.execute(text(statement))
    with engine.connect() as connection, pytest.raises(RowsRejected), translated():
        connection.execute(text("INSERT INTO t VALUES (:a)"), {"a": 2**70})
    engine.dispose()


def test_only_a_server_that_is_leaving_makes_its_open_connections_useless() -> None:
    stale = {
        state
        for state in POSTGRES[StoreUnavailable].split()
        if leaves_stale_connection(postgres_error(state))
    }

    assert stale == {"25006", "57P01", "57P02", "57P03", "57P05"}
    assert not leaves_stale_connection(sqlite_error(sqlite3.SQLITE_READONLY))


def test_the_description_is_one_line_with_the_code() -> None:
    assert describe(psycopg.errors.CheckViolation("refused\nDETAIL: the row's values")) == "refused (23514)"
    assert describe(sqlite_error(sqlite3.SQLITE_FULL)) == "words (SQLITE_NAME)"
    assert describe(psycopg.OperationalError()) == "OperationalError"
