"""Where other projects' programs are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache(name: str) -> Path:
    """The directory for one peer, made if need be."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "event-aggregator" / "peers" / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory
