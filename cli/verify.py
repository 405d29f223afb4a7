"""`aggregator verify`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import typer

from broker.errors import BrokerError
from broker.kafka import KafkaLog
from broker.local import LocalLog
from broker.ports import Log
from cli.reconciliation import Progress, Report, reconcile
from cli.settings import Settings, SettingsError, settings_or_exit
from db import migrations
from db.engine import open_engine
from db.errors import StoreError
from db.settings import DatabaseSettings
from db.stats_queries import gap_sentence

WRONG = 1
"""Exit status: something does not agree."""
UNFINISHED = 2
"""Exit status: it could not be found out."""
_GAPS_SHOWN = 20


def verify(data_dir: Path | None, *, counts_only: bool, as_json: bool) -> None:
    """Compare log and store and print what came out; ends the process with status 0, 1 or 2."""
    settings = settings_or_exit()
    try:
        log, database = _production(settings) if data_dir is None else _embedded(settings, data_dir)
        with _progress_bar(not as_json) as progress:
            report = asyncio.run(_compare(log, database, counts_only, progress))
    except (BrokerError, StoreError, SettingsError) as error:
        typer.echo(f"aggregator: log and store could not be compared: {error}", err=True)
        raise typer.Exit(UNFINISHED) from None
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        typer.echo("\n".join(_lines(report, counts_only)))
    if not report.ok:
        raise typer.Exit(WRONG)


async def _compare(log: Log, database: DatabaseSettings, counts_only: bool, progress: Progress) -> Report:
    engine = open_engine(database, application_name="aggregator verify", read_only=True)
    reader = log.reader()
    try:
        await asyncio.to_thread(migrations.check, engine)
        await reader.start()
        return await reconcile(reader, engine, log.topic, counts_only=counts_only, progress=progress)
    finally:
        await reader.stop()
        engine.dispose()


def _production(settings: Settings) -> tuple[Log, DatabaseSettings]:
    return KafkaLog(settings.require_kafka()), settings.require_database()


def _embedded(settings: Settings, directory: Path) -> tuple[Log, DatabaseSettings]:
    """The files of `aggregator dev`. Its lock is for writers: both files may be read while it runs."""
    files = directory / "log.db", directory / "store.db"
    for path in files:
        if not path.is_file():
            raise SettingsError(
                f"there is no {path.name} in {directory}; name the directory that `aggregator dev` uses."
            )
    log = LocalLog(files[0], settings.local_log)
    return log, DatabaseSettings.sqlite(files[1].resolve())


def _lines(report: Report, counts_only: bool) -> Iterator[str]:
    checked = report.checked
    read = "only counts were compared" if counts_only else f"{checked.records:,} records of the log read"
    yield (
        f"Log topic {report.log_topic}: {checked.partitions} partitions with a position,"
        f" {checked.events:,} events, {checked.dead_letters:,} dead letters; {read};"
        f" {checked.lag:,} records wait for their verdict."
    )
    if report.gaps:
        yield f"Known gaps: {len(report.gaps)}."
        yield from (f"  {gap_sentence(gap)}" for gap in report.gaps[:_GAPS_SHOWN])
        if len(report.gaps) > _GAPS_SHOWN:
            yield "  Earlier ones: GET /gaps."
    yield from report.notes
    if report.ok:
        yield "Everything agrees."
        return
    yield f"{report.findings_total:,} thing{'s do' if report.findings_total > 1 else ' does'} not agree:"
    yield from (f"  {finding.check}: {finding.sentence}" for finding in report.findings)
    left_out = report.findings_total - len(report.findings)
    if left_out:
        yield f"  and {left_out:,} more of the same kinds."


@contextmanager
def _progress_bar(wanted: bool) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal; else nothing."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
