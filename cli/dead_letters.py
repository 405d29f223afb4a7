"""`aggregator dead-letters`: what an operator does about records that are not stored as events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer

from cli.admin_client import AdminClient, AdminError
from cli.settings import settings_or_exit
from cli.table import print_table

_POLL_S: Final = 0.3
_PATH: Final = "/dead-letters"


def list_letters(url: str, *, limit: int, as_json: bool, **chosen: str | None) -> None:
    """Print dead letters, newest first; says if there are more."""
    with _asking(url) as admin:
        page = admin.get(_PATH, limit=limit, **chosen)
    if as_json:
        print(json.dumps(page))
        return
    columns = ("id", "status", "reason", "topic", "event_id", "parent_id", "created_at", "error")
    print_table(columns, [[one[name] for name in columns] for one in page["dead_letters"]])
    if page["next_cursor"] is not None:
        typer.echo(
            f"There are more than these {page['count']}; raise --limit or narrow the filter.", err=True
        )


def group_letters(url: str, *, as_json: bool, **chosen: str | None) -> None:
    """Print how many dead letters there are by reason."""
    with _asking(url) as admin:
        groups = admin.get(f"{_PATH}/groups", **chosen)["groups"]
    if as_json:
        print(json.dumps(groups))
        return
    rows = [
        [
            one["reason"],
            one["count"],
            ", ".join(f"{number} {status}" for status, number in sorted(one["statuses"].items())),
            one["oldest"],
            one["newest"],
        ]
        for one in groups
    ]
    print_table(("reason", "count", "statuses", "oldest", "newest"), rows)


def show_letter(url: str, letter: int, *, as_json: bool) -> None:
    """Print one dead letter with its bytes, and for a conflict what differs."""
    with _asking(url) as admin:
        found = admin.get(f"{_PATH}/{letter}")
    if as_json:
        print(json.dumps(found))
        return
    conflict = found.pop("conflict")
    for name, value in found.items():
        typer.echo(f"{name + ':':<21}{_text(value)}")
    if conflict is not None:
        typer.echo("differs from the stored event in:")
        for change in conflict["difference"]:
            before, after = json.dumps(change["stored"]), json.dumps(change["rejected"])
            typer.echo(f"  {change['path']} ({change['change']}): stored {before}, rejected {after}")
        if not conflict["difference_complete"]:
            typer.echo("  and in more places")


def act_on_some(url: str, kind: str, letters: Sequence[int], *, edited: Path | None, as_json: bool) -> None:
    """Replay or discard dead letters by id; goes on after one that is refused; the status is 1 then."""
    body = None if edited is None else _read(edited)
    failures = 0
    done: list[dict[str, Any]] = []
    with _asking(url) as admin:
        for letter in letters:
            try:
                answer = admin.post(f"{_PATH}/{letter}/{kind}", body=body)
            except AdminError as error:
                failures += 1
                typer.echo(f"aggregator: dead letter {letter}: {error}", err=True)
                continue
            done.append(answer)
            if not as_json:
                typer.echo(f"Dead letter {letter} is {answer['status']}.")
    if as_json:
        print(json.dumps(done))
    raise typer.Exit(1 if failures else 0)


def act_on_all(
    url: str, kind: str, *, limit: int | None, dry_run: bool, as_json: bool, **chosen: str | None
) -> None:
    """Replay or discard everything that matches, and wait for it; status 1 unless all of it went well.

    Interrupting this only ends the waiting: the operation goes on.
    """
    request = {
        "kind": kind,
        "filter": {name: value for name, value in chosen.items() if value is not None},
        "dry_run": dry_run,
        **({} if limit is None else {"limit": limit}),
    }
    with _asking(url) as admin:
        operation = admin.post(f"{_PATH}/operations", json=request)
        try:
            with _progress() as show:
                while operation["finished_at"] is None:
                    time.sleep(_POLL_S)
                    operation = admin.get(f"{_PATH}/operations/{operation['id']}")
                    show(operation["progress"])
        except (KeyboardInterrupt, AdminError):
            number = operation["id"]
            typer.echo(
                f"Operation {number} goes on without this command: GET {_PATH}/operations/{number} shows it,"
                f" POST {_PATH}/operations/{number}/cancel stops it.",
                err=True,
            )
            raise
    if as_json:
        print(json.dumps(operation))
    else:
        typer.echo(_summary(operation))
    raise typer.Exit(0 if _went_well(operation) else 1)


@contextmanager
def _asking(url: str) -> Iterator[AdminClient]:
    """A client; what goes wrong is told as a sentence, and ends the process with status 1."""
    try:
        with AdminClient(url, key=settings_or_exit().client.secret()) as admin:
            yield admin
    except AdminError as error:
        typer.echo(f"aggregator: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """A function to call with the share that is done; shows it on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda share: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn

    with Progress(
        BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda share: progress.update(task, completed=share)


def _summary(operation: dict[str, Any]) -> str:
    word = "replayed" if operation["kind"] == "replay" else "discarded"
    if operation["dry_run"]:
        text = f"Nothing was changed. {operation['done']} would be {word}"
    else:
        text = f"Operation {operation['id']} {operation['status']}: {operation['done']} {word}"
    for name, words in (
        ("skipped", "skipped (no value to replay)"),
        ("failed", "not taken by the log, still open"),
        ("unknown", "with unknown outcome (replay_unknown; to replay them again is safe)"),
    ):
        if operation[name]:
            text += f", {operation[name]} {words}"
    return text + "." + (f" {operation['error']}" if operation["error"] else "")


def _went_well(operation: dict[str, Any]) -> bool:
    return operation["status"] == "completed" and not operation["failed"] and not operation["unknown"]


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        typer.echo(f"aggregator: {path} cannot be read: {error.strerror}.", err=True)
        raise typer.Exit(2) from None


def _text(value: Any) -> str:
    """A value for people: bytes as their text where they have one."""
    if isinstance(value, dict) and value.keys() == {"size", "text", "base64"}:
        return str(value["text"]) if value["text"] is not None else f"base64:{value['base64']}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
