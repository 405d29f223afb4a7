"""`aggregator config`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import typer

from cli.settings import PREFIX, settings_or_exit


def show(*, as_json: bool) -> None:
    """Print every setting with its value in force; secrets come out as asterisks."""
    document = settings_or_exit().model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    for name, value in _flat(document, PREFIX):
        typer.echo(f"{name}={'' if value is None else value}")


def _flat(document: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}", value
