"""Unpacking archives on every Python there is."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(archive: tarfile.TarFile, target: Path) -> None:
    """Unpack an archive of our own making, or one whose digest was checked."""
    # `filter=` came with Python 3.11.4; distributions have older ones.
    archive.extraction_filter = getattr(tarfile, "data_filter", None)
    archive.extractall(target)
