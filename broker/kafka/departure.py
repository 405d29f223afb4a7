"""When the batches for a broker leave."""

from __future__ import annotations

import asyncio


class Departure:
    """Lets the lanes that lead to one broker send together.

    The client has one request at a time on its way to a broker: a batch handed to it meanwhile arrives no
    earlier, and misses the records that come until then. So lanes wait for the answer.
    """

    def __init__(self, longest_wait: float) -> None:
        self._longest_wait = longest_wait
        self._under_way = 0
        self._gate: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Return when a batch may leave.

        That is at once if none is under way, else as soon as the broker has answered for one; at the latest
        after `longest_wait` seconds, since one may be tried again and again.
        """
        gate = self._gate
        if gate is None:
            if not self._under_way:
                return
            gate = self._gate = asyncio.Event()
            self._timer = asyncio.get_running_loop().call_later(self._longest_wait, self._open)
        await gate.wait()

    def begin(self) -> None:
        """A batch leaves."""
        self._under_way += 1

    def end(self) -> None:
        """It has arrived, or never will."""
        self._under_way -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            # An answer is for several batches: what has to be said of the others is said in this turn.
            asyncio.get_running_loop().call_soon(self._open)

    def _open(self) -> None:
        gate, self._gate, self._timer = self._gate, None, None
        if gate is not None:
            gate.set()
