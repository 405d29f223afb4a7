"""Reading request bodies, which are small here, in bounded memory and time."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import Request

from telemetry.problem import Problem

READ_TIMEOUT_S: Final = 10.0


async def json_body(request: Request, *, most_bytes: int) -> bytes:
    """The body, which may be empty; if it is not, it says that it is JSON.

    Raises:
        Problem: 413, 415, or 408 for a body that does not arrive in time.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for piece in request.stream():
                size += len(piece)
                if size > most_bytes:
                    raise Problem(
                        413, "body_too_large", f"The request body is larger than {most_bytes:,} bytes."
                    )
                pieces.append(piece)
    except TimeoutError:
        raise Problem(
            408, "read_timeout", f"The request body did not arrive within {READ_TIMEOUT_S:g} seconds."
        ) from None
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if size and media_type != "application/json":
        raise Problem(
            415,
            "unsupported_content_type",
            "The body must be JSON and say so: add the header content-type: application/json.",
        )
    if size and request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "unsupported_content_encoding", "Send the body without a content-encoding.")
    return b"".join(pieces)
