"""Whether an event without a verdict could still be in the log, waiting for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from admin_api.log_view import LogState
from broker.partitioner import partition_for
from broker.ports import PartitionOffsets
from events.event import log_key
from telemetry.problem import Problem


class Waiting(msgspec.Struct, frozen=True):
    """Records that wait for their verdict.

    Attributes:
        gateway_partition: where the gateway puts records of this identity.
        gateway_partition_lag: records that wait there.
        total_lag: records that wait in any partition: a direct producer may have used any.
    """

    gateway_partition: int
    gateway_partition_lag: int
    total_lag: int


def lag(held: PartitionOffsets, next_offset: int | None) -> int:
    """Records without a verdict. What the log no longer holds does not wait for one; a position beyond the
    end is that of a topic that was recreated, which the worker will find out."""
    return max(0, held.end - max(held.beginning, next_offset or 0))


def waiting(state: LogState, next_offsets: Mapping[int, int], topic: str, event_id: str) -> Waiting | None:
    """What waits in the log; None if the log cannot be asked.

    Args:
        next_offsets: the stored positions, read after `state`: then no lag means that everything that was in
            the log at that time has its verdict.
    """
    if not state.offsets:
        return None
    lags = {number: lag(held, next_offsets.get(number)) for number, held in state.offsets.items()}
    partition = partition_for(log_key(topic, event_id), len(state.offsets))
    return Waiting(partition, lags.get(partition, 0), sum(lags.values()))


def unknown_event(found: Waiting | None, state: LogState) -> Problem:
    """The 404 for an identity of which no record has got a verdict, saying whether one still may."""
    may_arrive = None if found is None else found.total_lag > 0
    members: dict[str, Any] = {
        "may_still_arrive": may_arrive,
        "waiting": None if found is None else msgspec.to_builtins(found),
    }
    return Problem(
        404,
        "unknown_event",
        f"No record with this topic and event_id has got a verdict. {_prospect(found, state)}",
        retryable=may_arrive is not False,
        extra=members,
    )


def _prospect(found: Waiting | None, state: LogState) -> str:
    if found is None:
        return f"Whether one still waits in the log is not known: {state.detail or 'it has no partitions.'}"
    if not found.total_lag:
        return "None waits in the log either: every record there has its verdict."
    there = f"partition {found.gateway_partition}, where the gateway puts it"
    if found.gateway_partition_lag:
        return f"{found.gateway_partition_lag:,} records wait in {there}; it may be among them."
    return (
        f"None waits in {there}, but {found.total_lag:,} wait in other partitions, and it may be among them"
        " if it was sent straight to the log."
    )
