"""The `aggregator` command. Imports are made inside the commands, so that `--help` is instant."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from cli.dead_letter_commands import commands as dead_letter_commands
from cli.imports import quick_imports
from cli.key_commands import commands as key_commands
from cli.send import send_command

app = typer.Typer(
    name="aggregator",
    help="Stores every event exactly once: HTTP and Kafka in, Postgres or SQLite out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
database_commands = typer.Typer(help="The database schema.", no_args_is_help=True)
topic_commands = typer.Typer(help="The Kafka topic that is the log.", no_args_is_help=True)
retention_commands = typer.Typer(no_args_is_help=True)
config_commands = typer.Typer(help="The configuration.", no_args_is_help=True)
app.add_typer(database_commands, name="db")
app.add_typer(retention_commands, name="retention")
app.add_typer(topic_commands, name="topics")
app.add_typer(config_commands, name="config")
app.add_typer(dead_letter_commands, name="dead-letters")
app.add_typer(key_commands, name="keys")


@app.command()
def dev(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    data_dir: Annotated[Path, typer.Option(help="Where events are kept.", file_okay=False)] = Path(
        "aggregator-data"
    ),
    ephemeral: Annotated[
        bool,
        typer.Option("--ephemeral", help="Keep events in a temporary directory and discard them at the end."),
    ] = False,
) -> None:
    """Run everything in one process: gateway, worker and admin API on SQLite. Needs no configuration."""
    with quick_imports():
        from cli.dev import run_dev

    run_dev(host, port, data_dir, ephemeral=ephemeral)


@app.command()
def gateway() -> None:
    """Run the HTTP gateway: POST /publish into the log."""
    with quick_imports():
        from cli.roles import run_gateway

    run_gateway()


@app.command()
def worker() -> None:
    """Run a worker of the consumer group: from the log into the database."""
    with quick_imports():
        from cli.roles import run_worker_role

    run_worker_role()


@app.command()
def admin() -> None:
    """Run the admin API: events, statistics and dead letters."""
    with quick_imports():
        from cli.roles import run_admin

    run_admin()


app.command("send")(send_command)


@database_commands.command("upgrade")
def database_upgrade() -> None:
    """Bring the schema to the version this release needs. Safe to run from several places at once."""
    from cli.database import upgrade

    upgrade()


@database_commands.command("check")
def database_check() -> None:
    """Say whether the schema is the one this release needs; exit status 1 if not."""
    from cli.database import check

    check()


@database_commands.command("current")
def database_current() -> None:
    """Print the schema's version."""
    from cli.database import current

    current()


@topic_commands.command("create")
def topic_create(
    partitions: Annotated[int, typer.Option(min=1, help="At most this many workers can share the log.")] = 6,
    replication_factor: Annotated[
        int, typer.Option(min=1, help="Copies of each partition; 3 in production.")
    ] = 1,
) -> None:
    """Create the log topic. An existing topic is left as it is."""
    from cli.topics import create

    create(partitions, replication_factor)


@topic_commands.command("describe")
def topic_describe(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe the log topic: partitions, offsets, and the settings that matter."""
    from cli.topics import describe

    describe(as_json=as_json)


@app.command()
def verify(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Check the data directory of `aggregator dev`, which may be running; without this, the log"
            " and the database of the environment.",
            file_okay=False,
        ),
    ] = None,
    counts_only: Annotated[
        bool,
        typer.Option("--counts-only", help="Compare counts and positions; do not read the log or every row."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the log with the store: a verdict for every record, a row for every count.

    Reads only, and may run beside workers. Exit status 0 if everything agrees, 1 if anything does not, 2 if
    it could not be found out.
    """
    from cli.verify import verify as run

    run(data_dir, counts_only=counts_only, as_json=as_json)


@retention_commands.callback()
def retention() -> None:
    """Workers remove what is too old by themselves, as set by AGGREGATOR_RETENTION__…; this does so now."""


@retention_commands.command("run")
def retention_run(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Remove events and identities that are older than AGGREGATOR_RETENTION__… says. Safe beside workers."""
    from cli.retention import run

    run(as_json=as_json)


@config_commands.command("show")
def config_show(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the configuration in force, secrets redacted."""
    from cli.config import show

    show(as_json=as_json)


@app.command()
def health(
    url: Annotated[
        str | None,
        typer.Option(
            help="Base address of the process to ask, such as http://127.0.0.1:8080; without it, where the"
            " settings let gateway, worker and admin listen is tried, in this order.",
            show_default=False,
        ),
    ] = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it is ready for work, not only whether it is alive.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 3.0,
) -> None:
    """Ask a running process whether it is alive; exit status 1 if not. For container health checks."""
    from cli.health import ask

    ask(url, ready=ready, timeout=timeout)


def main() -> None:
    """Entry point of the `aggregator` script."""
    # What libraries log is for processes that say where to; a command tells its errors itself.
    logging.getLogger().addHandler(logging.NullHandler())
    app()
