"""A file system of its own with little room, to be filled and freed again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.skips import unavailable

_BLOCK = 64 * 1024


class SmallDisk:
    """A mounted tmpfs.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no room at all, and take what others give back."""
        with self._filler.open("ab") as filler, contextlib.suppress(OSError):
            while True:
                os.posix_fallocate(filler.fileno(), filler.seek(0, os.SEEK_END), _BLOCK)
        with self._filler.open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"\0" * 512):
                pass

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(mebibytes: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs of that size where every user can get at it; skips the test where that is not allowed."""
    path = Path(tempfile.mkdtemp(prefix="aggregator-disk-"))
    path.chmod(0o755)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0755", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        path.rmdir()
        unavailable("mount", f"a small file system cannot be mounted ({done.stderr.strip()}); it needs root.")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: a process that is just being ended may still have a file open.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()
