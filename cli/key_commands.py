"""The options of `aggregator keys`; what the commands do is imported when they run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(
    help="The keys that clients and operators need; kept in a file, by what they are recognised by.",
    no_args_is_help=True,
)


class _Role(StrEnum):
    # That of `access.keys`, whose import would cost `--help` its time.
    INGEST = "ingest"
    VIEWER = "viewer"
    OPERATOR = "operator"


def _name(value: str) -> str:
    if not 1 <= len(value.encode("utf-8", "replace")) <= 255 or not value.isprintable():
        raise typer.BadParameter("a name is 1 to 255 bytes of text without control characters.")
    return value


_Path = Annotated[
    Path | None,
    typer.Option(help="The keyring file; by default AGGREGATOR_KEYS__PATH.", dir_okay=False),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@commands.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="Whose key it is; in the audit log.", callback=_name)],
    role: Annotated[
        _Role, typer.Option(help="ingest publishes; viewer reads; operator reads, replays and discards.")
    ],
    topic: Annotated[
        list[str] | None,
        typer.Option(
            help="Ingest: may publish to these; `*` stands for any text. Repeatable. By default all."
        ),
    ] = None,
    payloads: Annotated[
        bool, typer.Option("--payloads", help="Viewer, operator: sees payloads, and bytes of dead letters.")
    ] = False,
    events_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Ingest: at most so many, at each gateway.")
    ] = None,
    bytes_per_second: Annotated[
        float | None, typer.Option(min=1, help="Ingest: at most so many of request bodies, at each gateway.")
    ] = None,
    path: _Path = None,
    as_json: _Json = False,
) -> None:
    """Make a key and print it, this once. Running processes take it within about a second."""
    from access.keys import Role
    from cli.keys import create

    create(
        name,
        Role(role.value),
        topics=topic or (),
        payloads=payloads,
        events_per_second=events_per_second,
        bytes_per_second=bytes_per_second,
        path=path,
        as_json=as_json,
    )


@commands.command("list")
def list_command(path: _Path = None, as_json: _Json = False) -> None:
    """List the keys: everything but the keys themselves."""
    from cli.keys import list_keys

    list_keys(path, as_json=as_json)


@commands.command("revoke")
def revoke_command(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="As in `aggregator keys list`, and in the key.")
    ],
    path: _Path = None,
) -> None:
    """Revoke a key. Running processes refuse it within about a second."""
    from cli.keys import revoke

    revoke(key_id, path)
