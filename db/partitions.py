"""The daily partitions of `events` on Postgres.

Partitions are made ahead of time. Where one is missing, events go to the default partition: ingestion never
waits for a partition. They are moved once the day's partition is made.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from sqlalchemy import Connection, Engine, text

from db.engine import transaction

DEFAULT: Final = "events_default"
_LOCK: Final = 0x706172746974696F
"""Key of the advisory lock; the bytes spell "partitio"."""
_DAY: Final = dt.timedelta(days=1)

# Attaching needs the default partition for itself for a moment, and whoever waits for a lock makes everybody
# behind wait: better to fail soon, and to be called again.
_LOCK_TIMEOUT: Final = "2s"


def ensure_partitions(engine: Engine, *, days_ahead: int = 7) -> list[str]:
    """Make the partitions of today, of the days ahead, and of every day with rows in the default partition,
    which are moved out of it. Days are UTC. Any number of processes may do so at once.

    Each partition is a transaction of its own. On SQLite nothing happens.

    Returns:
        The names of the partitions made.

    Raises:
        StoreUnavailable: also if a table is locked for long; partitions made before that remain.
    """
    if engine.dialect.name != "postgresql":
        return []
    with transaction(engine) as connection:
        existing = _existing(connection)
        today = connection.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date")).scalar_one()
        strays = connection.execute(
            text(f"SELECT DISTINCT (stored_at AT TIME ZONE 'UTC')::date FROM {DEFAULT}")  # noqa: S608
        ).scalars()
        days = {today + number * _DAY for number in range(days_ahead + 1)} | set(strays)
    return [name_of(day) for day in sorted(days) if name_of(day) not in existing and _make(engine, day)]


def name_of(day: dt.date) -> str:
    """The name of a day's partition."""
    return f"events_p{day:%Y%m%d}"


def day_of(name: str) -> dt.date:
    """The day of a partition with that name."""
    return dt.datetime.strptime(name, "events_p%Y%m%d").replace(tzinfo=dt.UTC).date()


def day_partitions(connection: Connection) -> frozenset[str]:
    """The names of the partitions there are, but for the default one."""
    return _existing(connection) - {DEFAULT}


def _make(engine: Engine, day: dt.date) -> bool:
    """Make one partition; False if another process did so meanwhile."""
    name, begin, end = name_of(day), _midnight(day), _midnight(day + _DAY)
    with transaction(engine) as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if name in _existing(connection):
            return False
        connection.execute(text(f"CREATE TABLE {name} (LIKE events INCLUDING ALL)"))
        connection.execute(text(f"LOCK TABLE {DEFAULT} IN ACCESS EXCLUSIVE MODE"))
        bounds = {"begin": begin, "end": end}
        moved = f"DELETE FROM {DEFAULT} WHERE stored_at >= :begin AND stored_at < :end RETURNING *"  # noqa: S608
        connection.execute(text(f"WITH moved AS ({moved}) INSERT INTO {name} SELECT * FROM moved"), bounds)  # noqa: S608
        # Unlike CREATE TABLE … PARTITION OF, this lets others read and write `events` meanwhile.
        connection.execute(
            text(f"ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ('{begin}') TO ('{end}')")
        )
    return True


def _existing(connection: Connection) -> frozenset[str]:
    found = connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'events'::regclass"
        )
    )
    return frozenset(found.scalars())


def _midnight(day: dt.date) -> str:
    return f"{day.isoformat()} 00:00:00+00"
