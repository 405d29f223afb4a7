"""Keys: what is known of them, how they are made and recognised.

A key is 256 random bits, so a fast hash keeps it as safe as a slow one would: there is nothing to guess.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
from enum import StrEnum
from typing import Final

import msgspec

_PREFIX: Final = "agg"
_ID_BYTES: Final = 6
_SECRET_BYTES: Final = 32
_NO_DIGEST: Final = "0" * 64


class Role(StrEnum):
    """What a key is for. Ingest keys publish and read nothing; the others publish nothing."""

    INGEST = "ingest"
    VIEWER = "viewer"
    OPERATOR = "operator"


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key as the keyring keeps it: everything but the key itself.

    Attributes:
        id: part of the key that is no secret; names it in logs and on the command line.
        name: for people; what the audit log calls whoever uses it. Several keys may share one.
        digest: SHA-256 of the whole key, in hexadecimal.
        topics: patterns of the topics an ingest key may publish to; `*` stands for any text.
        payloads: whether a viewer or operator sees payloads and the bytes of dead letters.
        events_per_second, bytes_per_second: of an ingest key, at each gateway; None for no limit.
    """

    id: str
    name: str
    role: Role
    digest: str
    created_at: dt.datetime
    revoked_at: dt.datetime | None = None
    topics: tuple[str, ...] = ()
    payloads: bool = False
    events_per_second: float | None = None
    bytes_per_second: float | None = None

    def may_publish_to(self, topic: str) -> bool:
        """Whether one of the patterns is the topic's."""
        return any(matches(pattern, topic) for pattern in self.topics)


def new_secret() -> tuple[str, str]:
    """An id and the key it belongs to, `agg_<id>_<secret>`."""
    key_id = secrets.token_hex(_ID_BYTES)
    return key_id, f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(secret: str) -> str:
    """What a key is recognised by."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def id_in(secret: str) -> str | None:
    """The id a key names; None for a text that is no key."""
    parts = secret.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else None


def is_secret_of(secret: str, key: Key | None) -> bool:
    """Whether the text is this key. Takes as long for a wrong one as for a right one, and for None."""
    return hmac.compare_digest(digest_of(secret), _NO_DIGEST if key is None else key.digest)


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic is one of a pattern, where `*` stands for any text, also none; in linear time."""
    first, *others = pattern.split("*")
    if not others:
        return pattern == topic
    last = others.pop()
    if len(topic) < len(first) + len(last) or not topic.startswith(first) or not topic.endswith(last):
        return False
    place, end = len(first), len(topic) - len(last)
    for part in others:
        found = topic.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True
