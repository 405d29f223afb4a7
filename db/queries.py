"""Everything that can be read from the store, in one place to hand over."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Engine

from db.audit import AuditQueries
from db.dead_letter_queries import DeadLetterQueries
from db.event_queries import EventQueries
from db.operation_queries import OperationQueries
from db.stats_queries import StatsQueries


class StoreQueries(NamedTuple):
    """The read side of the store."""

    events: EventQueries
    stats: StatsQueries
    dead_letters: DeadLetterQueries
    operations: OperationQueries
    audit: AuditQueries

    @classmethod
    def of(cls, engine: Engine, log_topic: str, *, timeout: float, max_page_bytes: int) -> StoreQueries:
        """Queries over one engine, best a `read_only` one.

        Args:
            log_topic: the log topic whose positions count.
            timeout: seconds after which a statement is stopped.
            max_page_bytes: payload bytes after which a page of events ends early.
        """
        return cls(
            events=EventQueries(engine, timeout=timeout, max_page_bytes=max_page_bytes),
            stats=StatsQueries(engine, log_topic, timeout=timeout),
            dead_letters=DeadLetterQueries(engine, timeout=timeout),
            operations=OperationQueries(engine, timeout=timeout),
            audit=AuditQueries(engine, timeout=timeout),
        )
