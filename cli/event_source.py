"""Where the events that `aggregator send` sends come from: NDJSON, or made up; and copies of them.

Everything streams: memory does not grow with the number of events.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import Final

import msgspec

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""A longer line is no event (the gateway takes 10 MiB) and is not held in memory."""
_GZIP_MAGIC: Final = b"\x1f\x8b"
_WINDOW_EVENTS: Final = 500
_RESERVOIR_EVENTS: Final = 2_000
_RESERVOIR_EVENT_BYTES: Final = 16 * 1024
"""Larger events are copied only within their window: the reservoir stays below 32 MiB."""

_syntax: Final = msgspec.json.Decoder(msgspec.Raw)


class EventFile:
    """Events from a binary stream of NDJSON, plain or gzip by its first bytes.

    Attributes:
        lines: lines read so far, blank ones included.
        unreadable: lines that hold no JSON.
        first_unreadable: the numbers of the first few of them, from 1.
        failure: why the events end before the input does; None if they do not.
    """

    SHOWN: Final = 5

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self.lines = 0
        self.unreadable = 0
        self.first_unreadable: list[int] = []
        self.failure: str | None = None

    @property
    def size(self) -> int | None:
        """Bytes of the file (compressed, if it is); None for a pipe."""
        return os.fstat(self._stream.fileno()).st_size if self._stream.seekable() else None

    @property
    def bytes_read(self) -> int | None:
        """How many of these have been read; None for a pipe."""
        return self._stream.tell() if self._stream.seekable() else None

    def __iter__(self) -> Iterator[bytes]:
        """The events' JSON, one by one. Ends early, with `failure`, where the input cannot be read on."""
        buffered = io.BufferedReader(self._stream)
        is_gzip = buffered.peek(2)[:2] == _GZIP_MAGIC
        lines = gzip.GzipFile(fileobj=buffered) if is_gzip else buffered
        try:
            while line := lines.readline(MAX_LINE_BYTES):
                self.lines += 1
                event = line.strip()
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    _skip_line(lines)
                    self._note_unreadable()
                elif _is_json(event):
                    yield event
                elif event:
                    self._note_unreadable()
        except (EOFError, OSError, zlib.error) as error:
            self.failure = f"The input breaks off after line {self.lines:,}: {str(error).rstrip('.')}."
        finally:
            # Or the buffer would close the stream, which is the caller's.
            if not self._stream.closed:
                buffered.detach()

    def _note_unreadable(self) -> None:
        self.unreadable += 1
        if len(self.first_unreadable) < self.SHOWN:
            self.first_unreadable.append(self.lines)


class Duplicator:
    """Mixes copies of events into a stream of them, at random places.

    For `n` events there are exactly `round(n * share)` copies. A copy is of an event that came before,
    or that comes within the same few hundred events.
    """

    def __init__(self, share: float, random: Random) -> None:
        self._share = share
        self._random = random
        self._seen = 0
        self._copied = 0
        self._eligible = 0
        self._reservoir: list[bytes] = []

    def mix(self, events: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
        """Pairs of an event and whether it is a copy."""
        source = iter(events)
        while window := list(islice(source, _WINDOW_EVENTS)):
            for event in window:
                self._remember(event)
            mixed = [(event, False) for event in window]
            for _ in range(round(self._seen * self._share) - self._copied):
                self._copied += 1
                copy = self._random.choice(self._reservoir or window)
                mixed.insert(self._random.randint(0, len(mixed)), (copy, True))
            yield from mixed

    def _remember(self, event: bytes) -> None:
        """Every eligible event so far is in the reservoir with the same probability."""
        self._seen += 1
        if len(event) > _RESERVOIR_EVENT_BYTES:
            return
        self._eligible += 1
        if len(self._reservoir) < _RESERVOIR_EVENTS:
            self._reservoir.append(event)
            return
        place = self._random.randrange(self._eligible)
        if place < _RESERVOIR_EVENTS:
            self._reservoir[place] = event


def _is_json(line: bytes) -> bool:
    try:
        line.decode()
        _syntax.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _skip_line(lines: io.BufferedIOBase) -> None:
    while (rest := lines.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass
