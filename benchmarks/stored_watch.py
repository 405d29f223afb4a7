"""Notes when each event becomes visible in the database, by the clock that all processes share.

Usage: python -m benchmarks.stored_watch URL

Looks every few milliseconds until its standard input ends, then prints JSON: event id to monotonic seconds.
One worker stores in the order of `seq`, so looking past the last one misses nothing.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Final

import psycopg

INTERVAL_SECONDS: Final = 0.005
_NEW: Final = "SELECT seq, event_id FROM events WHERE seq > %s ORDER BY seq"
# Or it would read the whole table each time, by a plan from when that was empty: half a core for looking on.
_BY_INDEX: Final = "-c enable_seqscan=off -c enable_bitmapscan=off"
_SETTLE_SECONDS: Final = 1.0


def main(url: str) -> None:
    seen: dict[str, float] = {}
    last, stop_at = -1, float("inf")
    with psycopg.connect(url, autocommit=True, options=_BY_INDEX) as connection:
        sys.stderr.write("watching\n")
        sys.stderr.flush()
        while time.monotonic() < stop_at:
            rows = connection.execute(_NEW, (last,)).fetchall()
            now = time.monotonic()
            if rows:
                last = rows[-1][0]
                seen.update((event_id, now) for _, event_id in rows)
                if stop_at < float("inf"):
                    stop_at = now + _SETTLE_SECONDS
            if stop_at == float("inf") and select.select([sys.stdin], [], [], 0)[0]:
                stop_at = now + _SETTLE_SECONDS
            time.sleep(INTERVAL_SECONDS)
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
