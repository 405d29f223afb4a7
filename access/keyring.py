"""The keys in force."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

import structlog

from access.keyring_file import KeyringError, read_keyring
from access.keys import Key, id_in, is_secret_of

_LOGGER: Final = structlog.get_logger("keys")

_Stamp = tuple[int, int, int]


class KeyRefused(Exception):
    """There is no key, or it opens nothing.

    Attributes:
        missing: whether there was none at all.
        message: a sentence for the sender.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.missing = missing


class Keyring:
    """The keys of a file, followed as it changes.

    A change is noticed at the first use of a key that comes `reread_seconds` or more after the last look. If
    the file then cannot be read, the keys stay those of before, and an error is logged: a slip of an editor
    locks nobody out. To revoke a key is to write a good file.

    Raises:
        KeyringError: the file cannot be read when this is made.
    """

    def __init__(
        self, path: Path, *, reread_seconds: float = 1.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._path = path
        self._reread_seconds = reread_seconds
        self._clock = clock
        self._looked_at = clock()
        self._stamp = _stamp(path)
        self._keys = {key.id: key for key in read_keyring(path)}

    def find(self, authorization: str | None) -> Key:
        """The key that an `Authorization` header carries.

        Raises:
            KeyRefused: none, not one of ours, or revoked.
        """
        self._follow()
        if authorization is None:
            raise KeyRefused(
                "A key is needed: send it in the header `Authorization: Bearer KEY`. An operator of this"
                " service makes one with `aggregator keys create`.",
                missing=True,
            )
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        key = self._keys.get(id_in(secret) or "")
        if scheme.lower() != "bearer" or not is_secret_of(secret, key) or key is None:
            raise KeyRefused(
                "The key is not one of ours. Send it as it was shown when it was made, in the header"
                " `Authorization: Bearer KEY`."
            )
        if key.revoked_at is not None:
            raise KeyRefused(f"The key {key.id} was revoked; ask an operator of this service for a new one.")
        return key

    def _follow(self) -> None:
        now = self._clock()
        if now < self._looked_at + self._reread_seconds:
            return
        self._looked_at = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = {key.id: key for key in read_keyring(self._path)}
        except KeyringError as error:
            _LOGGER.error("keyring unusable, the keys stay as they were", error=str(error))
        else:
            _LOGGER.info("keyring read again", keys=len(self._keys))


def _stamp(path: Path) -> _Stamp | None:
    """Differs whenever the file was written or replaced; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
