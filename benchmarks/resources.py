"""What a process and everything it started has used, from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PARENT: Final = 1
_OWN_AND_CHILDREN_TICKS: Final = slice(11, 15)
"""In /proc/PID/stat after the name: user and system time, and those of children that were waited for."""


class Used(NamedTuple):
    """Since the start of the process.

    Attributes:
        cpu_seconds: user and system time, of ended children too.
        peak_rss_mb: the sum of the highest resident sizes of the processes alive now.
    """

    cpu_seconds: float
    peak_rss_mb: float


def used(pid: int) -> Used:
    """Of a process and its descendants; what has ended meanwhile and left no parent is not counted."""
    ticks, peak_kb = 0, 0
    for member in _family(pid):
        fields = _stat(member)
        if fields is not None:
            ticks += sum(int(field) for field in fields[_OWN_AND_CHILDREN_TICKS])
            peak_kb += _peak_kb(member)
    return Used(ticks / _TICKS, peak_kb / 1024)


def _family(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            fields = _stat(int(directory.name))
            if fields is not None:
                parents[int(directory.name)] = int(fields[_PARENT])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the process's name; None if there is no such process any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _peak_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
