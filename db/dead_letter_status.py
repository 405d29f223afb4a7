"""What has been done about a dead letter.

```
                     ┌──────── not sent ────────┐
                     ▼                          │
  (worker) ──► pending ────── begin ──► replaying ── acknowledged ──► replayed
                 │ │                        │ ▲
                 │ │              not known │ │ begin
                 │ │                        ▼ │
                 │ └──────────────── replay_unknown ──┐
                 │                                    │
                 └─────────── discard ────────────────┴─────────────► discarded
```

A replay is three steps: a transaction that makes the row `replaying` and numbers the try, the record's way
into the log, and a transaction that says what became of it. Each change is conditional on the status (and the
number of the try) in the database, so of two operators one wins, and a process that comes back late changes
nothing.

Whatever ends between two steps, nothing is lost and nothing counts twice:

- before the log: the row is `replaying`, and nothing was sent;
- after the log, before the last transaction: the row is `replaying`, and the record gets its verdict like any
  other.

From outside the two look the same, so after a while such a row becomes `replay_unknown`. To replay it again
is always safe: the log's deduplication gives a second copy of a stored event the verdict `duplicate`, and a
second copy of a bad record becomes a further dead letter that names the same parent. Where it was not sent
for sure, the row goes back to what it was.

What is `replayed` stays so: if the new record fails again, that is a new dead letter, with this one as its
parent.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """The states of a dead letter."""

    PENDING = "pending"
    REPLAYING = "replaying"
    REPLAYED = "replayed"
    REPLAY_UNKNOWN = "replay_unknown"
    DISCARDED = "discarded"


OPEN: Final = (Status.PENDING, Status.REPLAY_UNKNOWN)
"""The states in which a dead letter can be replayed or discarded."""


class Outcome(StrEnum):
    """What became of a record on its way into the log."""

    ACKNOWLEDGED = "acknowledged"
    UNKNOWN = "unknown"
    NOT_SENT = "not_sent"
