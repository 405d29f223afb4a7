"""`aggregator topics`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer

from broker.errors import BrokerError
from broker.kafka import KafkaLog
from broker.ports import LogAdmin
from cli.settings import SettingsError, settings_or_exit

_T = TypeVar("_T")


def create(partitions: int, replication_factor: int) -> None:
    """Create the log topic, or say that it exists."""
    topic, created = _ask(lambda admin: admin.create(partitions, replication_factor))
    if created:
        typer.echo(f"Created topic {topic} with {partitions} partitions.")
    else:
        typer.echo(f"Topic {topic} exists already and was left as it is.")


def describe(*, as_json: bool) -> None:
    """Print the log topic, its partitions and their offsets."""

    async def both(admin: LogAdmin) -> tuple[object, dict[str, object]]:
        description = await admin.describe()
        offsets = await admin.offsets()
        return description, {
            "topic": description.topic,
            "partitions": [
                {"partition": p.partition, "beginning": p.beginning, "end": p.end}
                for p in sorted(offsets.values(), key=lambda p: p.partition)
            ],
            "replication_factor": description.replication_factor,
            "settings": dict(description.settings),
        }

    topic, (_, document) = _ask(both)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    partitions = document["partitions"]
    assert isinstance(partitions, list)
    typer.echo(
        f"Topic {topic}: {len(partitions)} partitions, replication factor {document['replication_factor']}"
    )
    for p in partitions:
        typer.echo(f"  partition {p['partition']}: offsets {p['beginning']} to {p['end']}")
    settings = document["settings"]
    assert isinstance(settings, dict)
    for name, value in sorted(settings.items()):
        typer.echo(f"  {name}={value}")


def _ask(question: Callable[[LogAdmin], Awaitable[_T]]) -> tuple[str, _T]:
    """Topic name and answer; on trouble the process ends with status 1 and a sentence."""
    settings = settings_or_exit()

    async def ask() -> tuple[str, _T]:
        log = KafkaLog(settings.require_kafka())
        admin = log.admin()
        await admin.start()
        try:
            return log.topic, await question(admin)
        finally:
            await admin.stop()

    try:
        return asyncio.run(ask())
    except (BrokerError, SettingsError) as error:
        typer.echo(f"aggregator: {error}", err=True)
        raise typer.Exit(1) from None
