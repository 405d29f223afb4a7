"""The events that are measured with: real ones, repeated with identities of their own until there are enough.

A fifth of the records are copies, each at a random place not far after its original.
"""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.rounds import LeftOut
from events.event import log_key

DUPLICATE_SHARE: Final = 0.2
DATA_VARIABLE: Final = "AGGREGATOR_BENCHMARK_DATA"
_BESIDE: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "commits.ndjson.gz"
_SEED: Final = 20_260_101
_NEARBY: Final = 20_000
"""A copy comes within this many records of its original."""
_FIELDS: Final = ("topic", "event_id", "timestamp", "source", "payload")


@dataclass(frozen=True)
class Event:
    """An event as it is sent."""

    topic: str
    event_id: str
    value: bytes

    @property
    def key(self) -> bytes:
        """Of its record in the log, as the gateway makes it."""
        return log_key(self.topic, self.event_id)


@dataclass(frozen=True)
class Workload:
    """Events in the order in which they are sent.

    Attributes:
        events: copies included; the last ones are no copies and have none.
        distinct: how many identities they have.
        last: the events at the very end; once these are stored, few can be missing.
    """

    events: list[Event]
    distinct: int
    last: int

    @property
    def bytes(self) -> int:
        return sum(len(event.value) for event in self.events)


def workload(records: int, *, last: int = 0) -> Workload:
    """Raises LeftOut where the file of real events is missing.

    Args:
        records: how many in all, of which DUPLICATE_SHARE are copies.
        last: how many at the end are neither copies nor copied.
    """
    chance = random.Random(_SEED)
    copies = round(records * DUPLICATE_SHARE)
    distinct = list(_distinct(records - copies))
    if len({(event.topic, event.event_id) for event in distinct}) != len(distinct):
        raise AssertionError("the identities made up are not distinct")
    body, end = distinct[: len(distinct) - last], distinct[len(distinct) - last :]
    placed: list[tuple[float, Event]] = [(float(index), event) for index, event in enumerate(body)]
    for _ in range(copies):
        original = chance.randrange(len(body))
        place = min(original + chance.random() * _NEARBY + 0.5, len(body))
        placed.append((place, body[original]))
    placed.sort(key=lambda pair: pair[0])
    return Workload([*(event for _, event in placed), *end], len(distinct), last)


def with_text_payload(event: Event) -> bytes:
    """The event's JSON with the payload as a string of JSON, for those who cannot take an object."""
    document = msgspec.json.decode(event.value, type=dict[str, msgspec.Raw])
    payload = bytes(document["payload"]).decode()
    return msgspec.json.encode({**document, "payload": payload})


def data_file() -> Path:
    """The gzip NDJSON file of real events. Raises LeftOut."""
    path = Path(os.environ.get(DATA_VARIABLE, _BESIDE))
    if not path.is_file():
        raise LeftOut(
            f"There are no real events in {path}; name such a file (gzip NDJSON) in {DATA_VARIABLE}."
        )
    return path


def _distinct(count: int) -> Iterator[Event]:
    with gzip.open(data_file()) as lines:
        real = [msgspec.json.decode(line, type=dict[str, msgspec.Raw]) for line in lines]
    encode = msgspec.json.encode
    for index in range(count):
        source = real[index % len(real)]
        event_id: str = msgspec.json.decode(source["event_id"])
        turn = index // len(real)
        if turn:
            # As long as the original: a hash with its beginning replaced by what no hash begins with.
            prefix = f"t{turn:03x}"
            event_id = prefix + event_id[len(prefix) :]
        topic: str = msgspec.json.decode(source["topic"])
        document = {**{name: source[name] for name in _FIELDS}, "event_id": event_id}
        yield Event(topic, event_id, encode(document))
