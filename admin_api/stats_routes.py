"""`/stats`, `/topics`, `/partitions`, `/gaps`: the system in figures."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from time import monotonic
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from admin_api import schemas
from admin_api.cursor import decode_name, decode_number, encode_cursor
from admin_api.log_view import LogState, LogView
from admin_api.parameters import PageParameters, Parameters
from admin_api.route import READ_PROBLEMS, AdminRoute, json_answer
from admin_api.whereabouts import lag
from broker.ports import PartitionOffsets
from db.stats_queries import Counts, Gap, PartitionProgress, StatsQueries, gap_sentence

_TOPICS = "topics"
_GAPS = "gaps"


def stats_router(
    queries: StatsQueries,
    log: LogView,
    *,
    worker_liveness: dt.timedelta,
    elapsed: Callable[[], float] = monotonic,
) -> APIRouter:
    """The routes that count. The process's uptime begins with this call.

    Args:
        worker_liveness: how old the heartbeat of a living worker can be.
        elapsed: a clock in seconds that never goes back.
    """
    router = APIRouter(tags=["statistics"], route_class=AdminRoute)
    started = elapsed()

    @router.get("/stats", response_model=schemas.Stats, responses=READ_PROBLEMS)
    async def show_stats(_: Annotated[Parameters, Query()]) -> Response:
        """Counts, backlog and the state of the parts.

        If the log cannot be reached, `queue_depth` is null and `broker` says why.
        """
        summary = await run_in_threadpool(queries.summary, worker_liveness=worker_liveness)
        # After the positions: then a depth of 0 means that the counts hold all of the log.
        state = await log.state()
        return json_answer(
            {
                **_count_fields(summary.counts),
                "topics": summary.topics,
                "topics_active": summary.topics_active,
                "queue_depth": _queue_depth(state, summary.next_offsets),
                "workers": summary.workers,
                "uptime_seconds": round(elapsed() - started, 3),
                "retention": summary.retention,
                "database": summary.database,
                "broker": _broker(log, state),
            }
        )

    @router.get("/topics", response_model=schemas.TopicsPage, responses=READ_PROBLEMS)
    def list_topics(given: Annotated[PageParameters, Query()]) -> Response:
        """Every topic's counts, in the order of their names; first, as null, the records without a topic."""
        after = None if given.cursor is None else decode_name(given.cursor, _TOPICS, None)
        found = queries.topics(limit=given.limit + 1, after=after)
        shown = found[: given.limit]
        following = encode_cursor(_TOPICS, None, shown[-1].topic or "") if len(found) > len(shown) else None
        topics = [
            {
                "topic": one.topic,
                **_count_fields(one.counts),
                "first_stored_at": one.first_stored_at,
                "last_stored_at": one.last_stored_at,
            }
            for one in shown
        ]
        return json_answer({"topics": topics, "count": len(topics), "next_cursor": following})

    @router.get("/partitions", response_model=schemas.Partitions, responses=READ_PROBLEMS)
    async def list_partitions(_: Annotated[Parameters, Query()]) -> Response:
        """How far each partition of the log has been given verdicts, and what is missing from it for good."""
        stored = {one.partition: one for one in await run_in_threadpool(queries.partitions)}
        state = await log.state()
        offsets = state.offsets or {}
        partitions = [
            _partition(number, stored.get(number), offsets.get(number))
            for number in sorted(stored.keys() | offsets.keys())
        ]
        return json_answer({"partitions": partitions, "broker": _broker(log, state)})

    @router.get("/gaps", response_model=schemas.GapsPage, responses=READ_PROBLEMS)
    def list_gaps(given: Annotated[PageParameters, Query()]) -> Response:
        """Offsets that never got a verdict, because the log was truncated, had expired or was recreated.

        Nothing brings these records back: where the producers still have them, they have to send them again,
        which is safe for those that were stored before.
        """
        before = None if given.cursor is None else decode_number(given.cursor, _GAPS, None)
        found = queries.gaps(limit=given.limit + 1, before=before)
        shown = found[: given.limit]
        following = encode_cursor(_GAPS, None, shown[-1].id) if len(found) > len(shown) else None
        return json_answer({"gaps": list(map(_gap, shown)), "count": len(shown), "next_cursor": following})

    return router


def _count_fields(counts: Counts) -> dict[str, int]:
    return {
        "received": counts.received,
        "unique_processed": counts.stored,
        "duplicate_dropped": counts.duplicate,
        "conflicting": counts.conflict,
        "dead_lettered": counts.dead_lettered,
    }


def _broker(log: LogView, state: LogState) -> dict[str, Any]:
    return {
        "status": state.status,
        "log_topic": log.log_topic,
        "partitions": None if state.offsets is None else len(state.offsets),
        "detail": state.detail,
    }


def _queue_depth(state: LogState, next_offsets: Any) -> int | None:
    if state.offsets is None:
        return None
    return sum(lag(held, next_offsets.get(held.partition)) for held in state.offsets.values())


def _partition(
    number: int, stored: PartitionProgress | None, held: PartitionOffsets | None
) -> dict[str, Any]:
    next_offset = None if stored is None else stored.next_offset
    return {
        "partition": number,
        "incarnation": None if stored is None else stored.incarnation,
        "next_offset": next_offset,
        "owner": None if stored is None else stored.owner,
        "last_commit": None if stored is None else stored.updated_at,
        "beginning_offset": None if held is None else held.beginning,
        "end_offset": None if held is None else held.end,
        "lag": None if held is None else lag(held, next_offset),
        "gaps": 0 if stored is None else stored.gaps,
        "last_gap": None if stored is None or stored.last_gap is None else _gap(stored.last_gap),
    }


def _gap(gap: Gap) -> dict[str, Any]:
    return {**msgspec.structs.asdict(gap), "explanation": gap_sentence(gap)}
