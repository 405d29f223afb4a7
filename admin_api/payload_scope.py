"""Payloads are for those whose key says so."""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import Request

from access.middleware import key_of
from db.event_queries import EventsPage, StoredEvent

_NULL: Final = msgspec.Raw(b"null")


def sees_payloads(request: Request) -> bool:
    """Whether the answer may hold payloads, and original bytes. Without keys it may."""
    key = key_of(request)
    return key is None or key.payloads


def redacted(event: StoredEvent) -> StoredEvent:
    """The event without its payload."""
    return msgspec.structs.replace(event, payload=_NULL)


def redacted_page(page: EventsPage) -> EventsPage:
    """The page without payloads."""
    return msgspec.structs.replace(page, events=[redacted(event) for event in page.events])
