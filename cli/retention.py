"""`aggregator retention`."""

from __future__ import annotations

import msgspec
import typer

from cli.settings import SettingsError, settings_or_exit
from db import migrations
from db.engine import open_engine
from db.errors import StoreError
from db.retention import Removed, remove_expired


def run(*, as_json: bool) -> None:
    """Remove what is too old, and say what that was."""
    settings = settings_or_exit()
    if settings.retention.events_days is None:
        typer.echo(
            "aggregator: nothing is ever too old: AGGREGATOR_RETENTION__EVENTS_DAYS is not set; set it to the"
            " number of days to keep events.",
            err=True,
        )
        raise typer.Exit(2)
    try:
        engine = open_engine(settings.require_database(), application_name="aggregator retention")
        try:
            migrations.check(engine)
            removed = remove_expired(engine, settings.retention)
        finally:
            engine.dispose()
    except (StoreError, SettingsError) as error:
        typer.echo(f"aggregator: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(msgspec.json.encode(removed).decode() if as_json else _sentences(removed))


def _sentences(removed: Removed) -> str:
    days = f" ({', '.join(removed.partitions)})" if removed.partitions else ""
    said = [f"Events stored before {removed.events_before:%Y-%m-%d}: {removed.events:,} removed{days}."]
    if removed.identities_before is not None:
        said.append(
            f"Identities stored before {removed.identities_before:%Y-%m-%d}: {removed.identities:,} removed."
        )
    if not removed.complete:
        said.append("Another process is removing what is too old; the rest was left to it.")
    return "\n".join(said)
