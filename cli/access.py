"""The keys of a process, and whether it may listen where it is told to."""

from __future__ import annotations

from access.keyring import Keyring
from access.keyring_file import KeyringError
from access.loopback import is_loopback
from access.settings import KeysSettings
from cli.process import StartFailure


def keyring_for(settings: KeysSettings, host: str) -> Keyring | None:
    """The keyring for a process that listens on an address; None without keys.

    Raises:
        StartFailure: there are no keys, and others than this machine could reach it; or the keyring cannot
            be used.
    """
    if settings.path is None:
        if is_loopback(host):
            return None
        raise StartFailure(
            f"{host} can be reached by others than this machine, and there are no keys. Make one with"
            " `aggregator keys create` and name its file in AGGREGATOR_KEYS__PATH, or listen on 127.0.0.1."
        )
    try:
        return Keyring(settings.path, reread_seconds=settings.reread_seconds)
    except KeyringError as error:
        raise StartFailure(str(error)) from None
