"""Now, in writing."""

from __future__ import annotations

import time
from functools import lru_cache


def now_text() -> str:
    """The time as RFC 3339 in UTC, to the microsecond: `2026-01-31T12:00:00.000000Z`."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{nanoseconds // 1_000:06d}Z"


# Each request needs it twice, and the same second comes thousands of times.
@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
