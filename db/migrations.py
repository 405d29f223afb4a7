"""The schema's version: reading it, checking it, bringing it up to date.

Reading and checking need one small query and no alembic, because every process does it at its start.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

from db.engine import transaction
from db.error_classes import translated
from db.errors import SchemaMismatch, StoreUnavailable

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision this version knows, oldest first."""

_VERSION_TABLE: Final = "alembic_version"
_UPGRADE: Final = "`aggregator db upgrade`"
_LOCK: Final = 0x6167677265676174
"""Key of the advisory lock; the bytes spell "aggregat"."""
_WAIT_FOR_OTHERS_S: Final = 120.0
_LOOK_AGAIN_S: Final = 0.1
_WAIT_FOR_TABLES: Final = "15s"
# Alembic keeps the migration that is running in the globals of its modules.
_one_at_a_time: Final = threading.Lock()


def head() -> str:
    """The revision this version needs."""
    return REVISIONS[-1]


def current(engine: Engine) -> str | None:
    """The revision the database is at; None without a schema.

    Raises:
        StoreUnavailable.
    """
    with transaction(engine) as connection:
        if not inspect(connection).has_table(_VERSION_TABLE):
            return None
        found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return found


def check(engine: Engine) -> None:
    """Return if this version can work with the schema: it is the one it needs, or a newer one that still has
    all of it, as there is while a newer version is being rolled out.

    Raises:
        SchemaMismatch: missing, older or too new; the message says which, and what to do.
        StoreUnavailable.
    """
    found, needed = current(engine), head()
    if found == needed:
        return
    if found is None:
        raise SchemaMismatch(
            f"The database has no schema yet; this version needs revision {needed}. Run {_UPGRADE}."
        )
    if found in REVISIONS:
        raise SchemaMismatch(
            f"The database schema is at revision {found}, older than {needed}, which this version needs."
            f" Run {_UPGRADE}."
        )
    if _oldest_that_works(engine) <= needed:
        return
    raise SchemaMismatch(
        f"The database schema is at revision {found}, with which this version cannot work; it needs {needed}."
        " The database was upgraded by a newer version: install that one. A newer schema is not taken back."
    )


def _oldest_that_works(engine: Engine) -> str:
    """The oldest revision whose code works with the schema; revisions sort as text."""
    with transaction(engine) as connection:
        found = connection.scalar(text("SELECT oldest FROM schema_compatibility"))
        return str(found)


def upgrade(engine: Engine) -> None:
    """Bring the schema up to date; nothing happens where it is, or is newer. Any number of processes may do
    so at once.

    Raises:
        SchemaMismatch: the schema is too new for this version, or the database's encoding is not UTF-8.
        StoreUnavailable: also if a lock is not to be had for long; nothing was changed.
    """
    from alembic.config import Config

    from alembic import command

    found = current(engine)
    if found is not None and found not in REVISIONS:
        check(engine)
        return
    config = Config()
    config.set_main_option("script_location", str(directory()))
    with _one_at_a_time, translated(), engine.connect() as connection, exclusively(connection):
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def exclusively(connection: Connection) -> Iterator[None]:
    """Keep other migrations of this database out during the block; afterwards the connection is of no use.

    Statements may take as long as they need. On SQLite there is
    nothing to do: a transaction keeps every other writer out.

    Raises:
        SchemaMismatch: the database cannot hold every text.
        StoreUnavailable: another migration takes very long.
    """
    if connection.dialect.name == "postgresql":
        encoding = connection.scalar(text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise SchemaMismatch(
                f"The database's encoding is {encoding}, which cannot hold every text; create one with"
                " CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0."
            )
        _configure(connection, statement_timeout="0", idle_in_transaction_session_timeout="0")
        _lock_out_others(connection)
        # Who waits for a table's lock makes everybody behind wait, so not for long.
        _configure(connection, lock_timeout=_WAIT_FOR_TABLES)
        connection.commit()
    try:
        yield
    finally:
        if connection.dialect.name == "postgresql":
            # Closed, which gives up the lock, and never used again with these settings. Not detached from its
            # pool at the beginning: SQLAlchemy could not leave transactions then, which some indexes need.
            connection.invalidate()


def _lock_out_others(connection: Connection) -> None:
    """Take the lock by asking again and again: whoever waits inside a statement is waited for by the building
    of an index without a lock on its table, which is how two migrations would wait for each other."""
    deadline = monotonic() + _WAIT_FOR_OTHERS_S
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
        connection.commit()
        if monotonic() > deadline:
            raise StoreUnavailable("Another migration of this database is still running; try again later.")
        sleep(_LOOK_AGAIN_S)


def directory() -> Path:
    """Where the migrations are: in the installed package, or beside the packages in a checkout."""
    installed = Path(__file__).parent / "_migrations"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "alembic"


def _configure(connection: Connection, **values: str) -> None:
    for name, value in values.items():
        connection.execute(text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
