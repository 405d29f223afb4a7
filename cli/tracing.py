"""Tracing, as the process's environment asks for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cli.process import StartFailure
from telemetry.tracing import Tracing, TracingMisconfigured, open_tracing


@asynccontextmanager
async def tracing(service: str, log_topic: str, group: str | None = None) -> AsyncIterator[Tracing]:
    """Spans while the block runs, if the standard `OTEL_*` variables ask for them; then sends what is left.

    Raises:
        StartFailure: they ask for something that is not to be had.
    """
    try:
        opened = open_tracing(os.environ, service=service, log_topic=log_topic, group=group)
    except TracingMisconfigured as error:
        raise StartFailure(str(error)) from None
    try:
        yield opened
    finally:
        await asyncio.to_thread(opened.close)
