"""What the HTTP server writes in one turn of the event loop reaches the transport in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from telemetry.server import _MOST_HELD_BYTES, _Turns


class Transport:
    """Remembers each piece it is given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def writelines(self, lines: Iterable[bytes]) -> None:
        assert not self.closed
        self.pieces.append(b"".join(lines))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def turns(transport: Any) -> _Turns:
    return _Turns(cast(asyncio.Transport, transport), asyncio.get_running_loop())


async def test_head_and_body_are_one_piece() -> None:
    transport = Transport()
    written = turns(transport)
    written.write(b"head ")
    written.write(b"body")
    assert transport.pieces == []
    await asyncio.sleep(0)
    assert transport.pieces == [b"head body"]
    written.write(b"next")
    await asyncio.sleep(0)
    assert transport.pieces == [b"head body", b"next"]


async def test_much_is_not_held_back() -> None:
    transport = Transport()
    written = turns(transport)
    for _ in range(3):
        written.write(bytes(_MOST_HELD_BYTES))
    assert sum(map(len, transport.pieces)) >= 2 * _MOST_HELD_BYTES
    await asyncio.sleep(0)
    assert sum(map(len, transport.pieces)) == 3 * _MOST_HELD_BYTES


async def test_closing_writes_what_is_held_first() -> None:
    transport = Transport()
    written = turns(transport)
    written.write(b"last words")
    written.close()
    assert (transport.pieces, transport.closed) == ([b"last words"], True)
    await asyncio.sleep(0)


async def test_what_is_held_for_a_lost_connection_is_dropped() -> None:
    transport = Transport()
    written = turns(transport)
    written.write(b"nobody reads this")
    transport.closed = True
    await asyncio.sleep(0)
    assert transport.pieces == []
