"""Passing over events that are of another time than the one asked for, on Postgres.

Two small indexes (BRIN) know for every hundred blocks or so which times and which `seq` they hold. A look at
a stretch of `seq` through both ends with the first event found, and costs next to nothing where there is
none. They do not know blocks written within the last minutes, which every look has to read: the newest events
are asked for by themselves, and read one by one if that takes long.
"""

from __future__ import annotations

import datetime as dt
from time import monotonic
from typing import Final

from sqlalchemy import BigInteger, Connection, Engine, func, literal, select

from db.errors import QueryTimedOut
from db.event_filter import EventFilter
from db.models import EventRow
from db.read_transaction import read_transaction

_FIRST_LOOK_ROWS: Final = 32_000
"""Rows of the first look; also how near a leap comes to an event."""
_SHORT_LOOK_S: Final = 0.05
"""Time of a look after which the next one may be for twice as many rows."""
_LONGEST_LOOK_S: Final = 0.25
_LONGEST_FRESH_LOOK_S: Final = 0.1
_SETTLED_AFTER: Final = dt.timedelta(hours=1)
_NO_SEQ: Final = 2**63 - 1

# Without these Postgres reads rows one after the other, where it expects to find one soon.
_ONLY_BLOCKS: Final = select(
    *(
        func.set_config(name, "off", True)
        for name in ("enable_seqscan", "enable_indexscan", "enable_indexonlyscan")
    )
)


class Leaps:
    """The leaps of one page or one walk, downwards.

    Args:
        timeout: of a statement, in seconds; a look that takes longer ends the leap, not the page.
        lowest: the lowest `seq` there is.
    """

    def __init__(self, engine: Engine, timeout: float, chosen: EventFilter, lowest: int) -> None:
        self._engine = engine
        self._timeout = timeout
        self._chosen = chosen
        self._lowest = lowest
        can = chosen.has_period and engine.dialect.name == "postgresql"
        self._can_leap = {True: can, False: can}
        self._settled: tuple[dt.datetime, int] | None = None

    def over(self, before: int, deadline: float) -> int:
        """A `seq` from which on, up to `before`, no event is of the period chosen: `before` itself, or near
        to the next such event. No look begins after the deadline (by the monotonic clock)."""
        top, found = before, False
        while not found:
            is_fresh = self._settled is None or top > self._settled[1]
            if not self._can_leap[is_fresh] or top <= self._lowest or monotonic() >= deadline:
                break
            top, found = self._leap(top, deadline, is_fresh)
        return top

    def _leap(self, top: int, deadline: float, is_fresh: bool) -> tuple[int, bool]:
        """Where a leap among fresh or settled events ends, and whether at an event.

        Each look is for twice as many rows as the one before, until one finds something, and then for half as
        many. What a look has found empty stays passed over, even if the next takes too long.
        """
        longest = min(self._timeout, _LONGEST_FRESH_LOOK_S if is_fresh else _LONGEST_LOOK_S)
        rows, is_near = _FIRST_LOOK_ROWS, False
        try:
            with read_transaction(self._engine, longest) as connection:
                moment, ceiling = self._settled = self._settled or _find_settled(connection)
                bound = max(ceiling, self._lowest) if is_fresh else self._lowest
                stored_before = None if is_fresh else moment
                connection.execute(_ONLY_BLOCKS)
                while top > bound and monotonic() < deadline:
                    began = monotonic()
                    floor = max(top - rows, bound)
                    holds = _holds(connection, self._chosen, floor, top, stored_before)
                    if holds and top - floor <= _FIRST_LOOK_ROWS:
                        return top, True
                    is_near = is_near or holds
                    if is_near:
                        rows = max((top - floor) // 2, _FIRST_LOOK_ROWS)
                    elif monotonic() - began < _SHORT_LOOK_S:
                        rows *= 2
                    if not holds:
                        top = floor
        except QueryTimedOut:
            # Blocks not known yet, or that hold something of nearly every time: their rows have to be read.
            self._can_leap[is_fresh] = False
        return top, False


def _find_settled(connection: Connection) -> tuple[dt.datetime, int]:
    """A moment before which all blocks are known, and the first `seq` stored since."""
    now = connection.execute(select(func.now())).scalar_one()
    # A boundary of partitions: those of older events are not touched by what is written now.
    moment = (now.astimezone(dt.UTC) - _SETTLED_AFTER).replace(hour=0, minute=0, second=0, microsecond=0)
    first = select(EventRow.seq).where(EventRow.stored_at >= moment).order_by(EventRow.seq).limit(1)
    seq = connection.execute(first).scalar_one_or_none()
    return moment, _NO_SEQ if seq is None else seq


def _holds(
    connection: Connection, chosen: EventFilter, floor: int, top: int, stored_before: dt.datetime | None
) -> bool:
    """Whether a stretch of `seq`, `top` exclusive, holds an event of the times chosen."""
    # Written out: a plan for any stretch at all would be none for a long one.
    since, until = (literal(bound, BigInteger, literal_execute=True) for bound in (floor, top))
    statement = select(EventRow.seq).where(*chosen.times(), EventRow.seq >= since, EventRow.seq < until)
    if stored_before is not None:
        statement = statement.where(EventRow.stored_at < stored_before)
    return connection.execute(statement.limit(1)).first() is not None
