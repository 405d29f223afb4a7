"""The line that is logged for every request."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import structlog

from telemetry.logging import log_together


class RequestLog:
    """Logs the requests that were answered in one turn of the event loop at its end.

    One line is rendered after the other then, and all are written at once: cheaper than in between the
    requests, where the processor has other code at hand, and each line is a system call.
    """

    def __init__(self) -> None:
        self._answered: list[tuple[str, dict[str, Any]]] = []

    def answered(self, level: str, fields: dict[str, Any]) -> None:
        """Log a line, with what is bound to the context besides."""
        if not self._answered:
            # The lines bring what their requests have bound; nothing is to come from elsewhere.
            asyncio.get_running_loop().call_soon(self._write, context=contextvars.Context())
        self._answered.append(
            (level, {"event": "request", **structlog.contextvars.get_contextvars(), **fields})
        )

    def _write(self) -> None:
        answered, self._answered = self._answered, []
        log_together("http", answered)
