"""What became of a record."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """Every record of the log gets exactly one."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    DEAD_LETTERED = "dead_lettered"


CONFLICT_REASON = "conflicting_duplicate"
"""Reason of the dead letter that keeps the losing record of a conflict."""
UNDECODABLE_REASON = "undecodable_record"
"""Reason of the dead letter for a record whose bytes the log client could not read."""
DATABASE_REASON = "database_rejected"
"""Reason of the dead letter for an event the database refuses for what it contains."""
