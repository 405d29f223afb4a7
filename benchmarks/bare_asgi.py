"""The floor under a gateway: an application that reads the body and answers a constant, on our HTTP server.

Usage: python -m benchmarks.bare_asgi PORT
"""

from __future__ import annotations

import sys
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from telemetry.server import HttpServer

_BODY: Final = b'{"accepted":1,"queued":1,"rejected":0,"errors":null}'
_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))],
}
_END: Final[Message] = {"type": "http.response.body", "body": _BODY}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message.get("more_body", False):
            break
    await send(_START)
    await send(_END)


if __name__ == "__main__":
    HttpServer(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_grace_seconds=1).run()
