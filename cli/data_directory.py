"""The directory in which the embedded mode keeps everything."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.process import StartFailure


@contextmanager
def locked(directory: Path) -> Iterator[Path]:
    """Create the directory if needed and hold it: two processes on one SQLite log would corrupt positions.

    The lock ends with the process, however it ends.

    Raises:
        StartFailure: another process holds it, or it cannot be written.
    """
    path = directory / "lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartFailure(
            f"the data directory {directory} cannot be used: {error.strerror};"
            " choose another with --data-dir."
        ) from None
    with os.fdopen(descriptor, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = lock.read().strip() or "unknown"
            raise StartFailure(
                f"the data directory {directory} is in use by process {owner}; stop that one,"
                " or choose another directory with --data-dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield directory
