"""What was sent, and what the sender knows of it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What a sender can say of one attempt."""

    OK = "ok"
    """Acknowledged."""
    FAILED = "failed"
    """Certainly not in the log: refused for what it is, or never delivered to anybody."""
    UNKNOWN = "unknown"
    """No answer, or one that leaves it open: it may be in the log."""


@dataclass(frozen=True)
class Sent:
    """An event, as much of it as tells it from others."""

    topic: str
    event_id: str
    content: str
    """Of `canonical`."""


@dataclass(frozen=True)
class Poison:
    """A record that is no event, by its very bytes."""

    key: bytes | None
    value: bytes | None


def canonical(timestamp: int, source: str, payload: Any) -> str:
    """What counts as an event's content, in one form; the timestamp in seconds since 1970."""
    return json.dumps([timestamp, source, payload], sort_keys=True, separators=(",", ":"))


class Ledger:
    """Every attempt with its outcome. Safe to use from many threads.

    Attributes:
        attempts: how many ended each way.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: dict[Sent | Poison, set[Outcome]] = {}
        self.attempts: Counter[Outcome] = Counter()

    def note(self, items: Iterable[Sent | Poison], outcome: Outcome) -> None:
        with self._lock:
            for item in items:
                self._outcomes.setdefault(item, set()).add(outcome)
                self.attempts[outcome] += 1

    def with_outcome(self, *outcomes: Outcome) -> set[Sent | Poison]:
        """Everything of which at least one attempt ended in one of these ways."""
        with self._lock:
            return {item for item, seen in self._outcomes.items() if seen.intersection(outcomes)}

    @property
    def acknowledged(self) -> int:
        return self.attempts[Outcome.OK]
