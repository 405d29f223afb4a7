"""Real events, kept outside the repository."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.skips import unavailable

_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "commits.ndjson.gz"


def real_events() -> Path:
    """Gzip NDJSON of real events: AGGREGATOR_TEST_DATA, or shared/data beside the repository; else skips."""
    path = Path(os.environ.get("AGGREGATOR_TEST_DATA", _BESIDE))
    if not path.is_file():
        unavailable(
            "data", f"{path} does not exist; set AGGREGATOR_TEST_DATA to a gzip NDJSON file of events"
        )
    return path
