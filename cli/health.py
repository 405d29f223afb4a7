"""`aggregator health`."""

from __future__ import annotations

import urllib.error
import urllib.request

import typer


def ask(url: str, timeout: float) -> None:
    """Exit with status 0 if `/livez` at this address answers 200, else 1 with a sentence."""
    address = url.rstrip("/") + "/livez"
    if not address.startswith(("http://", "https://")):
        typer.echo(f"aggregator: {url} is not an http:// or https:// address.", err=True)
        raise typer.Exit(2)
    try:
        with urllib.request.urlopen(address, timeout=timeout) as response:
            typer.echo(response.read().decode(errors="replace"))
    except (OSError, urllib.error.URLError) as error:
        typer.echo(f"aggregator: {address} does not answer with 200: {error}", err=True)
        raise typer.Exit(1) from None
