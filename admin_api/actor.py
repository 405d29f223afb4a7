"""Who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import Request

from access.middleware import key_of
from admin_api.route import parameter_problem

ANONYMOUS: Final = "anonymous"
_MAX_BYTES: Final = 255

ActorOf = Callable[[Request], str]
"""Names whoever sent a request. The routes take it as given, so that it can come from a key."""


def actor_of(request: Request) -> str:
    """The name of the key the request was let in with; without keys, what it claims."""
    key = key_of(request)
    return claimed_actor(request) if key is None else key.name


def claimed_actor(request: Request) -> str:
    """What the header `X-Actor` says, or `anonymous`. A claim: without keys nobody can check it.

    Raises:
        Problem: 422, for a name that is too long or holds control characters.
    """
    claimed = request.headers.get("x-actor")
    if claimed is None:
        return ANONYMOUS
    try:
        # HTTP headers arrive as Latin-1, whatever was sent.
        name = claimed.encode("latin-1").decode()
    except UnicodeDecodeError:
        name = ""
    if not 1 <= len(name.encode()) <= _MAX_BYTES or not name.isprintable():
        raise parameter_problem(
            f"The header X-Actor must be 1 to {_MAX_BYTES} bytes of UTF-8 without control characters."
        )
    return name
