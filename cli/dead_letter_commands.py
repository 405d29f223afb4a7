"""The options of `aggregator dead-letters`; what the commands do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(
    help="Records that are not stored as events: look at them, replay them, discard them, by the admin API.",
    no_args_is_help=True,
)

_Url = Annotated[
    str,
    typer.Option(help="The admin API's address; of `aggregator dev` that is http://127.0.0.1:8080."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Reason = Annotated[str | None, typer.Option(help="Only these: why they are dead letters.")]
_Topic = Annotated[str | None, typer.Option(help="Only these: the event's topic.")]
_Status = Annotated[
    str | None,
    typer.Option(help="Only these: pending, replaying, replayed, replay_unknown or discarded."),
]
_Open = Annotated[
    str | None, typer.Option(help="With --all: pending (the default) or replay_unknown.", show_default=False)
]
_Since = Annotated[str | None, typer.Option(help="Only these: dead since, such as 2026-01-31T12:00:00Z.")]
_Until = Annotated[str | None, typer.Option(help="Only these: dead before.")]
_Ids = Annotated[list[int] | None, typer.Argument(metavar="ID…", min=1, show_default=False)]
_All = Annotated[bool, typer.Option("--all", help="All that match the filter, in place of ids.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="With --all: at most so many, the oldest first.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="With --all: only count what would be done.")]
_DEFAULT_URL = "http://127.0.0.1:8081"


@commands.command("list")
def list_command(
    url: _Url = _DEFAULT_URL,
    reason: _Reason = None,
    topic: _Topic = None,
    status: _Status = None,
    since: _Since = None,
    until: _Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many.")] = 50,
    as_json: _Json = False,
) -> None:
    """List dead letters, newest first."""
    from cli.dead_letters import list_letters

    list_letters(
        url, limit=limit, as_json=as_json, reason=reason, topic=topic, status=status, since=since, until=until
    )


@commands.command("groups")
def groups_command(
    url: _Url = _DEFAULT_URL,
    topic: _Topic = None,
    status: _Status = None,
    since: _Since = None,
    until: _Until = None,
    as_json: _Json = False,
) -> None:
    """Say how many dead letters there are by reason, and what was done about them."""
    from cli.dead_letters import group_letters

    group_letters(url, as_json=as_json, topic=topic, status=status, since=since, until=until)


@commands.command("show")
def show_command(
    letter: Annotated[int, typer.Argument(metavar="ID", min=1)],
    url: _Url = _DEFAULT_URL,
    as_json: _Json = False,
) -> None:
    """Show one dead letter with its bytes; a conflict with what differs."""
    from cli.dead_letters import show_letter

    show_letter(url, letter, as_json=as_json)


@commands.command("replay")
def replay_command(
    letters: _Ids = None,
    every: _All = False,
    url: _Url = _DEFAULT_URL,
    edited: Annotated[
        Path | None,
        typer.Option("--event", metavar="FILE|-", help="Send this event in place of the record; for one ID."),
    ] = None,
    reason: _Reason = None,
    topic: _Topic = None,
    status: _Open = None,
    since: _Since = None,
    until: _Until = None,
    limit: _Limit = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Send records through the log again: some by id, one edited, or all that match.

    Exit status 1 if anything was not replayed.
    """
    _check(letters, every, [reason, topic, status, since, until, limit, dry_run or None])
    if edited is not None and (every or len(letters or []) != 1):
        raise typer.BadParameter("an edited event is for exactly one ID.", param_hint="--event")
    from cli.dead_letters import act_on_all, act_on_some

    if not every:
        act_on_some(url, "replay", letters or [], edited=edited, as_json=as_json)
    chosen = {"reason": reason, "topic": topic, "status": status, "since": since, "until": until}
    act_on_all(url, "replay", limit=limit, dry_run=dry_run, as_json=as_json, **chosen)


@commands.command("discard")
def discard_command(
    letters: _Ids = None,
    every: _All = False,
    url: _Url = _DEFAULT_URL,
    reason: _Reason = None,
    topic: _Topic = None,
    status: _Open = None,
    since: _Since = None,
    until: _Until = None,
    limit: _Limit = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Note that nothing more will be done about records, which are kept: some by id, or all that match.

    Exit status 1 if anything was not discarded.
    """
    _check(letters, every, [reason, topic, status, since, until, limit, dry_run or None])
    from cli.dead_letters import act_on_all, act_on_some

    if not every:
        act_on_some(url, "discard", letters or [], edited=None, as_json=as_json)
    chosen = {"reason": reason, "topic": topic, "status": status, "since": since, "until": until}
    act_on_all(url, "discard", limit=limit, dry_run=dry_run, as_json=as_json, **chosen)


def _check(letters: list[int] | None, every: bool, only_with_all: list[object]) -> None:
    if bool(letters) == every:
        raise typer.BadParameter("name dead letters by their ids, or give --all: exactly one of them.")
    if not every and any(given is not None for given in only_with_all):
        raise typer.BadParameter("filters, --limit and --dry-run go with --all, not with ids.")
