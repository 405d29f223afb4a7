"""Fetching a stretch of one partition as it is, outside of any consumer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.protocol.fetch import FetchRequest

_WAIT_MS: Final = 200
"""What a broker waits for the first byte."""
_READ_COMMITTED: Final = 1


class Fetched(NamedTuple):
    """What `broker.kafka.salvage` reads.

    Attributes:
        raw: whole batches, the last of which may be cut off; the first may begin before the position.
        end: the end offset of committed records.
        aborted: producer id and first offset of the aborted transactions in `raw`.
    """

    raw: bytes
    end: int
    aborted: Sequence[tuple[int, int]]


async def fetch(client: Any, leader: int, place: TopicPartition, position: int, limit: int) -> Fetched:
    """Fetch committed records from `position` on, up to `limit` bytes. Raises KafkaError."""
    topics = [(place.topic, [(place.partition, position, limit)])]
    answer = await client.send(leader, FetchRequest(_WAIT_MS, 1, limit, _READ_COMMITTED, topics))
    ((_, ((_, error_code, high_water, *rest),)),) = answer.topics
    if error_code:
        raise kafka_errors.for_code(error_code)({place: position})
    end = rest[0] if rest[0] >= 0 else high_water
    return Fetched(rest[-1] or b"", end, rest[2 if answer.API_VERSION >= 11 else -2] or ())
