"""`aggregator db`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cli.settings import SettingsError, settings_or_exit
from db import migrations
from db.engine import Engine, open_engine
from db.errors import StoreError


def upgrade() -> None:
    """Upgrade, and say from where to where."""
    with _engine() as engine:
        before = migrations.current(engine)
        migrations.upgrade(engine)
        after = migrations.current(engine)
    if before == after:
        typer.echo(f"The schema is at {after} already.")
    else:
        typer.echo(f"The schema was upgraded from {before or 'nothing'} to {after}.")


def check() -> None:
    """Exit with status 1 and a sentence unless the schema is the one this release needs."""
    with _engine() as engine:
        migrations.check(engine)
    typer.echo(f"The schema is at {migrations.head()}, as this release needs it.")


def current() -> None:
    """Print the schema's version, or that there is none."""
    with _engine() as engine:
        typer.echo(migrations.current(engine) or "none")


@contextmanager
def _engine() -> Iterator[Engine]:
    try:
        engine = open_engine(settings_or_exit().require_database(), application_name="aggregator db")
        try:
            yield engine
        finally:
            engine.dispose()
    except (StoreError, SettingsError) as error:
        typer.echo(f"aggregator: {error}", err=True)
        raise typer.Exit(1) from None
