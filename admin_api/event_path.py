"""The identity in a path `/events/{topic}/{event_id}`, where both parts can hold any character."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import Path, Request

from admin_api.route import parameter_problem
from events.errors import InvalidEvent
from events.fields import check_name

_TEXT = "Percent-encode every character that is not plain in a URL; a slash is `%2F`."


def identity_in_path(
    request: Request,
    topic: Annotated[str, Path(description=f"The event's topic. {_TEXT}", examples=["orders"])],
    event_id: Annotated[str, Path(description=f"The event's id. {_TEXT}", examples=["order-1"])],
) -> tuple[str, str]:
    """Topic and event_id. The first slash that is not percent-encoded ends the topic.

    The server decodes `%2F` before routing, so what the router found in `topic` and `event_id` cannot be
    trusted where a name has a slash: the path is taken apart again as it was sent.

    Raises:
        Problem: 422, for a name that breaks its rule.
    """
    sent = _sent_path(request)
    if sent is None:
        names = [topic, event_id]
    else:
        try:
            names = [unquote_to_bytes(part).decode() for part in sent.partition(b"/")[::2]]
        except UnicodeDecodeError:
            raise parameter_problem("The path is not UTF-8 after percent-decoding.") from None
    try:
        check_name("topic", names[0])
        check_name("event_id", names[1])
    except InvalidEvent as error:
        raise parameter_problem(f"The path must be /events/{{topic}}/{{event_id}}: {error.message}") from None
    return names[0], names[1]


def _sent_path(request: Request) -> bytes | None:
    """What follows `/events/` in the path as it was sent; None if the server does not tell."""
    raw: bytes | None = request.scope.get("raw_path")
    if raw is None:
        return None
    root = str(request.scope.get("root_path", "")).encode()
    _, _, sent = raw.removeprefix(root).partition(b"/events/")
    return sent
