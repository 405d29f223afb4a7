"""`aggregator health`."""

from __future__ import annotations

import ipaddress
import urllib.error
import urllib.request

import typer

from cli.settings import Settings, settings_or_exit


def ask(url: str | None, *, ready: bool, timeout: float) -> None:
    """Exit with status 0 if the process answers 200, else 1 with a sentence.

    Args:
        url: base address of the process; None to try where the settings in force here let each role listen,
            and to ask the first that does. In a container with one process that is the one.
        ready: ask whether work should be sent to it, not only whether it is alive.
        timeout: seconds for each answer.
    """
    probe = "/readyz" if ready else "/livez"
    if url is not None and not url.startswith(("http://", "https://")):
        typer.echo(f"aggregator: {url} is not an http:// or https:// address.", err=True)
        raise typer.Exit(2)
    bases = [url] if url is not None else role_addresses(settings_or_exit())
    # This machine itself is asked: a proxy that the environment names is not meant.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    refused: list[str] = []
    for base in bases:
        address = base.rstrip("/") + probe
        try:
            with opener.open(address, timeout=timeout) as response:
                typer.echo(response.read().decode(errors="replace"))
                return
        except OSError as error:
            if len(bases) > 1 and _nobody_listens(error):
                refused.append(base)
                continue
            typer.echo(f"aggregator: {address} does not answer with 200: {error}", err=True)
            raise typer.Exit(1) from None
    typer.echo(f"aggregator: nothing listens on {', '.join(refused)}.", err=True)
    raise typer.Exit(1)


def role_addresses(settings: Settings) -> list[str]:
    """Where gateway, worker and admin listen with these settings, as seen from the same machine."""
    roles = (settings.ingest, settings.worker, settings.admin)
    return list(dict.fromkeys(f"http://{_reachable(role.host)}:{role.port}" for role in roles if role.port))


def _reachable(host: str) -> str:
    """An address to connect to, for one that is listened on."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


def _nobody_listens(error: OSError) -> bool:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, ConnectionRefusedError)
