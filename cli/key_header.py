"""How a client shows its key."""

from __future__ import annotations


def key_header(key: str | None) -> dict[bytes, bytes]:
    """The header that carries it; none without a key."""
    return {} if key is None else {b"authorization": b"Bearer " + key.encode()}
