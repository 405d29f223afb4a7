"""`/events`: pages, exports, one event."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from admin_api import schemas
from admin_api.cursor import decode_number, encode_cursor
from admin_api.event_path import identity_in_path
from admin_api.log_view import LogView
from admin_api.parameters import EventFilterParameters, EventsParameters, Parameters
from admin_api.payload_scope import redacted, redacted_page, sees_payloads
from admin_api.route import READ_PROBLEMS, AdminRoute, json_answer
from admin_api.whereabouts import unknown_event, waiting
from db.event_queries import EventQueries, EventsPage
from db.stats_queries import StatsQueries
from telemetry.problem import ProblemDocument

_LISTING = "events"
_encode = msgspec.json.Encoder().encode


_UNKNOWN = (
    "No record of this identity has got a verdict. `may_still_arrive` says whether one may wait in the log"
    " (null if the log cannot be reached); `waiting` how many records do: `gateway_partition` is where the"
    " gateway puts this identity, `gateway_partition_lag` what waits there, `total_lag` what waits anywhere,"
    " for producers that write to the log directly may use any partition. With `may_still_arrive` false, no"
    " such record was in the log when the request came."
)


def event_router(queries: EventQueries, stats: StatsQueries, log: LogView, *, export_chunk: int) -> APIRouter:
    """The routes under `/events`.

    Args:
        stats, log: asked where an event that is not known could still be.
        export_chunk: most events an export holds at once.
    """
    router = APIRouter(tags=["events"], route_class=AdminRoute)

    @router.get("/events", response_model=schemas.EventsPage, responses=READ_PROBLEMS)
    def list_events(request: Request, given: Annotated[EventsParameters, Query()]) -> Response:
        """Stored events, newest (last stored) first.

        Follow `next_cursor` until it is null to walk over all of them: the walk returns every event that was
        stored when it began exactly once, whatever is stored meanwhile.
        """
        chosen = given.chosen()
        before = None if given.cursor is None else decode_number(given.cursor, _LISTING, chosen)
        page = queries.page(chosen, limit=given.limit, before=before, offset=given.offset or 0)
        following = None if page.next_before is None else encode_cursor(_LISTING, chosen, page.next_before)
        if not sees_payloads(request):
            page = redacted_page(page)
        return json_answer({"events": page.events, "count": len(page.events), "next_cursor": following})

    @router.get(
        "/events/export",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "One event per line, each as in `GET /events`.",
                "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            },
            **READ_PROBLEMS,
        },
    )
    def export_events(request: Request, given: Annotated[EventFilterParameters, Query()]) -> Response:
        """All events of a filter as NDJSON, newest (last stored) first, streamed.

        If something fails on the way, the connection is cut before the end of the response: what arrives
        complete is complete.
        """
        pages = queries.pages(given.chosen(), chunk=export_chunk)
        # Before the response starts, so that a database that is down still gives a problem document.
        first = next(pages)
        shown: Iterable[EventsPage] = chain([first], pages)
        if not sees_payloads(request):
            shown = map(redacted_page, shown)
        return StreamingResponse(map(ndjson, shown), media_type="application/x-ndjson")

    @router.get(
        "/events/{topic:path}/{event_id:path}",
        response_model=schemas.EventWithStory,
        responses={**READ_PROBLEMS, 404: {"model": ProblemDocument, "description": _UNKNOWN}},
    )
    async def show_event(
        request: Request,
        identity: Annotated[tuple[str, str], Depends(identity_in_path)],
        _: Annotated[Parameters, Query()],
    ) -> Response:
        """One event and its story: the verdict of every record seen for it that is still known.

        Conflicts and dead letters are told one by one, with what became of them; duplicates are counted by
        topic (`/topics`) and not remembered one by one. For an identity of which nothing is known, the answer
        says whether the log holds records that could still be it.

        A topic or event_id with a slash is written with `%2F`. (For a part that is `.` or `..`, which HTTP
        clients remove from paths, use `GET /events?topic=…&event_id=…`.)
        """
        story = await run_in_threadpool(queries.story, *identity)
        if story is None:
            # The log first, then the positions, then the story once more: without lag in between, what was in
            # the log has its verdict, and this story is the last word on it.
            state = await log.state()
            positions = {one.partition: one.next_offset for one in await run_in_threadpool(stats.partitions)}
            story = await run_in_threadpool(queries.story, *identity)
            if story is None:
                raise unknown_event(waiting(state, positions, *identity), state)
        if story.event is not None and not sees_payloads(request):
            story = msgspec.structs.replace(story, event=redacted(story.event))
        return json_answer(story)

    return router


def ndjson(page: EventsPage) -> bytes:
    """A page with one event per line."""
    return b"".join(map(_line, page.events))


def _line(event: msgspec.Struct) -> bytes:
    line: bytes = _encode(event)
    if b"\n" in line or b"\r" in line:
        # Only between the tokens of a payload that was sent on several lines; within strings it is escaped.
        line = line.replace(b"\n", b" ").replace(b"\r", b" ")
    return line + b"\n"
