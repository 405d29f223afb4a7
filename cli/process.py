"""What every long-running process does alike: its loop, its signals, its last words."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import typer
import uvloop

from broker.errors import BrokerError, LogUnavailable
from cli.settings import LogOutputSettings, SettingsError
from db.errors import StoreError, StoreUnavailable
from stream_worker.backoff import Backoff, wait_or_stop
from stream_worker.watchdog import WorkerStuck
from telemetry.logging import configure_logging

_log = structlog.get_logger("process")
_T = TypeVar("_T")


class StartFailure(Exception):
    """The process cannot start; the text says why and what to do."""


def run_process(
    service: str, log: LogOutputSettings, main: Callable[[asyncio.Event], Awaitable[None]]
) -> None:
    """Run `main` until it returns; SIGTERM and SIGINT set the event it is given.

    Ends the process with status 0 after a stop, or 1 and a sentence on stderr after an error an operator can
    do something about.
    """
    configure_logging(service, level=log.level, json=None if log.format == "auto" else log.format == "json")

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except (BrokerError, StoreError, SettingsError, StartFailure, WorkerStuck) as error:
        typer.echo(f"aggregator: {error}", err=True)
        raise typer.Exit(1) from None


async def once_available(step: Callable[[], Awaitable[_T]], stop: asyncio.Event) -> _T | None:
    """Take a step as soon as log and store can be reached; None if stopped before.

    Raises:
        BrokerError, StoreError: other than being unreachable, which time does not heal.
    """
    backoff = Backoff(0.2, 5.0)
    while not stop.is_set():
        try:
            return await step()
        except (LogUnavailable, StoreUnavailable) as error:
            wait = backoff.next_wait()
            _log.warning("waiting for a dependency", detail=str(error), wait_s=round(wait, 3))
            await wait_or_stop(wait, stop)
    return None
