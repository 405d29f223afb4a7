"""How long to wait before the next try."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Exponential waits with full jitter, so that workers that failed together do not return together."""

    def __init__(
        self, minimum_s: float, maximum_s: float, random_source: random.Random | None = None
    ) -> None:
        self._minimum = minimum_s
        self._maximum = maximum_s
        self._random = random_source or random.Random()
        self._tries = 0

    def reset(self) -> None:
        """Start over, after a success."""
        self._tries = 0

    def next_wait(self) -> float:
        """Seconds to wait now: between half of and the whole of a ceiling that doubles up to the maximum."""
        ceiling = min(self._maximum, self._minimum * 2.0**self._tries)
        self._tries = min(self._tries + 1, 60)
        return ceiling * (0.5 + self._random.random() / 2)


async def wait_or_stop(seconds: float, stop: asyncio.Event) -> None:
    """Wait, but return at once when `stop` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
