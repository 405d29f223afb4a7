"""`/audit`: who did what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from admin_api import schemas
from admin_api.cursor import decode_number, encode_cursor
from admin_api.parameters import AuditParameters
from admin_api.route import READ_PROBLEMS, AdminRoute, json_answer
from db.audit import AuditQueries
from db.event_filter import AuditFilter

_LISTING = "audit"


def audit_router(queries: AuditQueries) -> APIRouter:
    """The route of the audit log."""
    router = APIRouter(tags=["audit"], route_class=AdminRoute)

    @router.get("/audit", response_model=schemas.AuditPage, responses=READ_PROBLEMS)
    def list_audit_entries(given: Annotated[AuditParameters, Query()]) -> Response:
        """Who did what, when, newest first. What a bulk operation did to each dead letter is not listed: the
        dead letter names the operation, and the operation its filter."""
        chosen = AuditFilter(dead_letter_id=given.dead_letter_id)
        before = None if given.cursor is None else decode_number(given.cursor, _LISTING, chosen)
        found = queries.page(chosen, limit=given.limit + 1, before=before)
        page = found[: given.limit]
        following = encode_cursor(_LISTING, chosen, page[-1].id) if len(found) > len(page) else None
        return json_answer({"entries": page, "count": len(page), "next_cursor": following})

    return router
