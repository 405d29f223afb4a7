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
from telemetry.http import PROBE_PATHS
from telemetry.problem import Problem, problem_response

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._admit(scope)
            except Problem as problem:
                state = scope.setdefault("state", {})
                state["error_type"] = problem.code
                await problem_response(problem, state.get("request_id"))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._keyring is None:
            sentence = host_problem(headers.get("host"), headers.get("origin"))
            if sentence is not None:
                raise Problem(403, "host_not_allowed", sentence)
        elif scope["path"] not in OPEN_PATHS:
            try:
                key = self._keyring.find(headers.get("authorization"))
            except KeyRefused as refused:
                raise key_problem(refused) from None
            _require_role(key, scope["method"])
            scope.setdefault("state", {})["key"] = key
            structlog.contextvars.bind_contextvars(key_id=key.id)


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
