"""`aggregator keys`: what they do; the options are in `cli.key_commands`."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from access.keyring_file import KeyringError, changing_keyring, read_keyring
from access.keys import Key, Role, digest_of, new_secret
from cli.settings import settings_or_exit
from cli.table import print_table


def create(
    name: str,
    role: Role,
    *,
    topics: Sequence[str],
    payloads: bool,
    events_per_second: float | None,
    bytes_per_second: float | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Make a key and print it, this once."""
    _check(role, topics, payloads, events_per_second, bytes_per_second)
    key_id, secret = new_secret()
    key = Key(
        id=key_id,
        name=name,
        role=role,
        digest=digest_of(secret),
        created_at=dt.datetime.now(dt.UTC).replace(microsecond=0),
        topics=(tuple(topics) or ("*",)) if role is Role.INGEST else (),
        payloads=payloads,
        events_per_second=events_per_second,
        bytes_per_second=bytes_per_second,
    )
    file = _path(path)
    try:
        with changing_keyring(file) as keys:
            keys.append(key)
    except KeyringError as error:
        raise _failed(error) from None
    if as_json:
        print(json.dumps({**_shown(key), "key": secret}))
        return
    typer.echo(f"{_in_words(key)}. Added to {file}. This is shown once; keep it:", err=True)
    print(secret)


def list_keys(path: Path | None, *, as_json: bool) -> None:
    """Print what is known of every key."""
    try:
        keys = read_keyring(_path(path))
    except KeyringError as error:
        raise _failed(error) from None
    shown = [_shown(key) for key in keys]
    if as_json:
        print(json.dumps(shown))
        return
    columns = ("id", "name", "role", "topics", "limits", "payloads", "created_at", "revoked_at")
    rows = [
        {**one, "topics": " ".join(one["topics"]), "limits": _limits(key)}
        for one, key in zip(shown, keys, strict=True)
    ]
    print_table(columns, [[row[column] for column in columns] for row in rows])


def revoke(key_id: str, path: Path | None) -> None:
    """Mark a key as revoked; whoever uses it is told so."""
    file = _path(path)
    try:
        with changing_keyring(file) as keys:
            places = [place for place, key in enumerate(keys) if key.id == key_id]
            if not places:
                raise KeyringError(f"{file} has no key {key_id}; `aggregator keys list` shows them.")
            key = keys[places[0]]
            if key.revoked_at is None:
                keys[places[0]] = _revoked(key)
    except KeyringError as error:
        raise _failed(error) from None
    typer.echo(f"{key_id} ({key.name}) is revoked. Running processes notice within about a second.")


def _revoked(key: Key) -> Key:
    import msgspec

    return msgspec.structs.replace(key, revoked_at=dt.datetime.now(dt.UTC).replace(microsecond=0))


def _check(
    role: Role,
    topics: Sequence[str],
    payloads: bool,
    events_per_second: float | None,
    bytes_per_second: float | None,
) -> None:
    if role is Role.INGEST:
        if payloads:
            raise typer.BadParameter("an ingest key reads nothing; --payloads is for viewers and operators.")
        return
    if topics or events_per_second is not None or bytes_per_second is not None:
        raise typer.BadParameter("--topic and the limits are for ingest keys only.")


def _path(path: Path | None) -> Path:
    chosen = path or settings_or_exit().keys.path
    if chosen is None:
        raise typer.BadParameter("say which keyring: give --path, or set AGGREGATOR_KEYS__PATH.")
    return chosen


def _shown(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "topics": list(key.topics),
        "payloads": key.payloads,
        "events_per_second": key.events_per_second,
        "bytes_per_second": key.bytes_per_second,
        "created_at": key.created_at.isoformat(),
        "revoked_at": None if key.revoked_at is None else key.revoked_at.isoformat(),
    }


def _limits(key: Key) -> str:
    limits = ((key.events_per_second, "events/s"), (key.bytes_per_second, "bytes/s"))
    return ", ".join(f"{limit:,g} {unit}" for limit, unit in limits if limit is not None)


def _in_words(key: Key) -> str:
    if key.role is Role.INGEST:
        limits = _limits(key)
        return f"Key {key.id} publishes to {' '.join(key.topics)}" + (f", at most {limits}" if limits else "")
    does = "reads, replays and discards" if key.role is Role.OPERATOR else "reads"
    return f"Key {key.id} {does}, {'with' if key.payloads else 'without'} payloads"


def _failed(error: KeyringError) -> typer.Exit:
    typer.echo(f"aggregator: {error}", err=True)
    return typer.Exit(1)
