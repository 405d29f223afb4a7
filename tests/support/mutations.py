"""Bytes that are nearly right."""

from __future__ import annotations

from random import Random

_ODD = (
    b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b'"', b"{", b"}", b"[", b"]", b",",
    b":", b"1e400", b"-0", b"NaN", b"null", b"9" * 30, b"\\", b"\xef\xbb\xbf", b" ", b"\x1f",
)  # fmt: skip


def mutated(raw: bytes, random: Random) -> bytes:
    """The bytes after one to four random changes: some removed, replaced, repeated, or odd ones put in."""
    changed = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(changed))
        kind = random.randrange(4)
        if kind == 0:
            del changed[at : at + random.randint(1, 6)]
        elif kind == 1:
            changed[at:at] = random.choice(_ODD)
        elif kind == 2:
            changed[at : at + 1] = bytes([random.randrange(256)])
        else:
            end = min(len(changed), at + random.randint(1, 20))
            changed[at:at] = changed[at:end]
    return bytes(changed)
