"""Connections, and the one way to open a transaction for writing."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Dialect, create_engine, event
from sqlalchemy import Engine as Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError, InvalidRequestError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from db.error_classes import DRIVER_ERRORS, leaves_stale_connection, translated
from db.errors import StoreUnavailable
from db.settings import DatabaseSettings

_SECRET_QUERY: Final = ("password", "sslpassword")
_READER_POOL_SIZE: Final = 4
_OPTION: Final = "transaction_timeout_seconds"
_DEADLINE: Final = "aggregator_deadline"


def open_engine(settings: DatabaseSettings, *, application_name: str, read_only: bool = False) -> Engine:
    """An engine for the store; nothing is connected yet. Its repr and its logs never show the password.

    Postgres: sessions run in UTC with the settings' timeouts, and a connection is tested before each use.
    SQLite: WAL, `synchronous=FULL`. A writing engine has exactly one connection, whose transactions take the
    write lock at their beginning; a process opens at most one. Reading engines (`read_only`) see committed
    data, cannot write, and never start a checkpoint.

    Args:
        application_name: shown in `pg_stat_activity`.
        read_only: the engine's transactions cannot write.
    """
    if settings.sqlalchemy_url.drivername == "sqlite":
        return _open_sqlite(settings, read_only)
    return _open_postgres(settings, application_name, read_only)


@contextmanager
def transaction(engine: Engine, *, patience: int = 1) -> Iterator[Connection]:
    """A transaction: committed at the end of the block, rolled back by an exception.

    It ends within the engine's `transaction_timeout_seconds` times `patience`, commit included, whatever the
    network and the server do: then the connection is cut, which looks like any other lost connection. (SQLite
    is not bounded: it has no network, and waits for locks no longer than `lock_timeout_seconds`.)

    Raises:
        StoreUnavailable: also when it is unknown whether the commit took place.
        SchemaMismatch, RowsRejected: nothing was committed.
    """
    seconds = engine.get_execution_options().get(_OPTION)
    with (
        translated(),
        _connect(engine) as connection,
        _cut_after(seconds and seconds * patience, connection.connection.driver_connection),
    ):
        try:
            with connection.begin():
                yield connection
        except DRIVER_ERRORS as error:
            if leaves_stale_connection(error):
                connection.invalidate()
            raise


def pool_connections(engine: Engine) -> dict[str, int]:
    """How many connections of the engine are `used` and `idle`. Asks nobody, waits for nothing."""
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return {}
    return {"used": pool.checkedout(), "idle": pool.checkedin()}


def _connect(engine: Engine) -> Connection:
    try:
        return engine.connect()
    except InvalidRequestError as error:
        # The pool gives up when fresh connections, too, are lost before their first use.
        raise StoreUnavailable from error


@contextmanager
def _cut_after(seconds: float | None, driver_connection: Any) -> Iterator[None]:
    """Shut the connection's socket down after so many seconds, unless the block has ended by then.

    The drivers wait for an answer without limit, and a server that is stopped, or a proxy that swallows
    everything, keeps the socket itself alive.
    """
    if seconds is None or not isinstance(driver_connection, psycopg.Connection):
        yield
        return
    # A duplicate: the driver may close its descriptor at any time, and another socket get that number.
    duplicate = socket.socket(fileno=os.dup(driver_connection.fileno()))
    timer = threading.Timer(seconds, _shut_down, [duplicate])
    timer.daemon = True
    timer.name = "database-deadline"
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        duplicate.close()


def _shut_down(connected: socket.socket) -> None:
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was faster


def _open_postgres(settings: DatabaseSettings, application_name: str, read_only: bool) -> Engine:
    url = settings.sqlalchemy_url
    query = dict(url.query)
    secrets: dict[str, Any] = {name: query.pop(name) for name in _SECRET_QUERY if name in query}
    engine = create_engine(
        url.set(query=query),
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.connect_timeout_seconds,
        pool_recycle=settings.pool_recycle_seconds,
        hide_parameters=True,
        execution_options={_OPTION: settings.transaction_timeout_seconds},
        connect_args={
            **secrets,
            "application_name": application_name,
            "client_encoding": "utf8",
            "connect_timeout": settings.connect_timeout_seconds,
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": round(settings.transaction_timeout_seconds * 1000),
        },
    )
    session = {
        "timezone": "UTC",
        # Duplicates committed by others meanwhile have to be visible to the next statement.
        "default_transaction_isolation": "read committed",
        "statement_timeout": _milliseconds(settings.statement_timeout_seconds),
        "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
        "idle_in_transaction_session_timeout": _milliseconds(settings.transaction_timeout_seconds),
    }
    if read_only:
        session["default_transaction_read_only"] = "on"

    # The driver bounds the connecting itself, but not what follows: first SQLAlchemy asks a few questions,
    # then we configure the session. If that fails, the entry is thrown away, and the deadline with it.
    @event.listens_for(engine, "do_connect")
    def connect(
        dialect: Dialect, entry: ConnectionPoolEntry, arguments: list[Any], named: dict[str, Any]
    ) -> DBAPIConnection:
        connection = dialect.connect(*arguments, **named)
        deadline = ExitStack()
        deadline.enter_context(_cut_after(settings.connect_timeout_seconds, connection))
        entry.info[_DEADLINE] = deadline
        return connection

    @event.listens_for(engine, "connect")
    def configure(connection: psycopg.Connection[Any], entry: ConnectionPoolEntry) -> None:
        # Not by the `options` parameter, which connection poolers refuse.
        with entry.info.pop(_DEADLINE):
            with connection.cursor() as cursor:
                for name, value in session.items():
                    cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            connection.commit()

    @event.listens_for(engine, "checkout")
    def test(connection: psycopg.Connection[Any], _: ConnectionPoolEntry, __: object) -> None:
        # What pool_pre_ping does, but bounded in time.
        try:
            with _cut_after(settings.connect_timeout_seconds, connection):
                connection.autocommit = True
                connection.execute("")
                connection.autocommit = False
        except psycopg.Error as error:
            # Its neighbours in the pool are most likely lost as well: the pool replaces them all.
            raise InvalidatePoolError from error

    return engine


def _open_sqlite(settings: DatabaseSettings, read_only: bool) -> Engine:
    engine = create_engine(
        settings.sqlalchemy_url,
        poolclass=QueuePool,
        # SQLite up to 3.51.2 can corrupt the WAL when two connections write and checkpoint at once.
        pool_size=_READER_POOL_SIZE if read_only else 1,
        max_overflow=0,
        pool_timeout=settings.lock_timeout_seconds,
        hide_parameters=True,
        connect_args={"timeout": settings.lock_timeout_seconds, "check_same_thread": False},
    )
    pragmas = (
        ("PRAGMA query_only = ON", "PRAGMA wal_autocheckpoint = 0")
        if read_only
        else (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = ON",
            # Identities are random, so the working set of their index is all of it.
            "PRAGMA cache_size = -65536",
            "PRAGMA wal_autocheckpoint = 4000",
        )
    )
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        # Transactions begin where we say so, not where the driver guesses.
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
