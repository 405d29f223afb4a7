"""The file that keeps the keys."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from access.keys import Key

_VERSION: Final = 1
_MODE: Final = 0o600


class KeyringError(Exception):
    """The keyring cannot be used; the text says why and what to do."""


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    keys: tuple[Key, ...]


def read_keyring(path: Path) -> tuple[Key, ...]:
    """The keys, in the order they were made.

    Raises:
        KeyringError: the file is missing, cannot be read, or is not a keyring of this version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise KeyringError(
            f"There is no keyring at {path}. Make one, with its first key, by `aggregator keys create`."
        ) from None
    except OSError as error:
        raise KeyringError(f"The keyring {path} cannot be read: {error.strerror}.") from None
    try:
        document = msgspec.json.decode(content, type=_Document)
    except msgspec.DecodeError as error:
        raise KeyringError(
            f"The keyring {path} cannot be understood: {error}. It is written by `aggregator keys`; restore"
            " it from a copy, or make a new one."
        ) from None
    if document.version != _VERSION:
        raise KeyringError(
            f"The keyring {path} is of version {document.version}; this release reads version {_VERSION}."
        )
    ids = {key.id for key in document.keys}
    if len(ids) < len(document.keys):
        raise KeyringError(f"The keyring {path} has two keys of the same id; remove one of them.")
    return document.keys


@contextlib.contextmanager
def changing_keyring(path: Path) -> Iterator[list[Key]]:
    """The keys as a list to change; written when the block ends, at once and whole, also if there was none.

    Changes made by several processes come one after the other. Access rights of the file stay as they are; a
    new one is its owner's alone.

    Raises:
        KeyringError: as for reading, or the file cannot be written.
    """
    with _writable(path), _locked(path):
        keys = list(read_keyring(path)) if path.exists() else []
        yield keys
        _write(path, keys)


def _write(path: Path, keys: Sequence[Key]) -> None:
    content = msgspec.json.format(msgspec.json.encode(_Document(_VERSION, tuple(keys))))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            _keep_rights(path, file.fileno())
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _keep_rights(path: Path, descriptor: int) -> None:
    try:
        before = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, _MODE)
        return
    os.fchmod(descriptor, before.st_mode & 0o777)
    # Only root may give files away; anybody else owns the file already, or could not have written it.
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, before.st_uid, before.st_gid)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise KeyringError(f"The keyring {path} cannot be written: {error.strerror}.") from None
