"""The door of every HTTP application."""

from __future__ import annotations

from typing import Final

import structlog
from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from access.keyring import KeyRefused, Keyring
from access.keys import Key, Role
from access.loopback import host_problem
from telemetry.http import PROBE_PATHS, answer_problem, header_text
from telemetry.problem import Problem

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_MOST_SEEN: Final = 100
_LONGEST_SEEN: Final = 100
OPEN_PATHS: Final = PROBE_PATHS | {"/docs", "/openapi.json", "/publish"}
"""The first tell nothing of what is stored; the route of the last looks at keys itself."""


def guard(app: FastAPI, keyring: Keyring | None) -> None:
    """Let in only requests that may come in; see `AccessMiddleware`. Call it once per application."""
    # Innermost, so that what is refused has a request id, and is logged and measured.
    app.user_middleware.append(Middleware(AccessMiddleware, keyring=keyring))


class AccessMiddleware:
    """Lets a request in, or answers it.

    With keys, whatever is not named open needs one: of a viewer or an operator to read, of an operator for
    anything else. A route that is forgotten is therefore closed. Without keys, only requests for this machine
    that no web page of elsewhere has sent are let in.

    Args:
        keyring: None without keys.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring | None) -> None:
        self.app = app
        self._keyring = keyring
        # Values of `Host` that were found to be of this machine: most requests bring the same.
        self._seen: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._admit(scope)
            except Problem as problem:
                await answer_problem(problem, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        if self._keyring is None:
            self._require_this_machine(scope)
        elif scope["path"] not in OPEN_PATHS:
            try:
                key = self._keyring.find(Headers(scope=scope).get("authorization"))
            except KeyRefused as refused:
                raise key_problem(refused) from None
            _require_role(key, scope["method"])
            scope.setdefault("state", {})["key"] = key
            structlog.contextvars.bind_contextvars(key_id=key.id)

    def _require_this_machine(self, scope: Scope) -> None:
        host = origin = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if origin is None and host in self._seen:
            return
        sentence = host_problem(header_text(host), header_text(origin))
        if sentence is not None:
            raise Problem(403, "host_not_allowed", sentence)
        if host is not None and len(host) <= _LONGEST_SEEN and len(self._seen) < _MOST_SEEN:
            self._seen.add(host)


def key_of(request: Request) -> Key | None:
    """The key a request was let in with; None where there are no keys."""
    key: Key | None = request.scope.get("state", {}).get("key")
    return key


def key_problem(refused: KeyRefused) -> Problem:
    """The answer to a request without a key that is any good."""
    return Problem(
        401,
        "key_missing" if refused.missing else "key_not_valid",
        refused.message,
        headers={"www-authenticate": "Bearer"},
    )


def _require_role(key: Key, method: str) -> None:
    if key.role is Role.INGEST:
        raise Problem(
            403,
            "role_not_allowed",
            "This key is for publishing events only; use one of a viewer or operator.",
        )
    if method not in _READING and key.role is not Role.OPERATOR:
        raise Problem(403, "role_not_allowed", "A viewer changes nothing; use the key of an operator.")
