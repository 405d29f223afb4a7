"""`aggregator send`: publish events from a file, from standard input, or made up; say what became of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from cli.send_summary import SendSummary

if TYPE_CHECKING:
    from io import RawIOBase

    from rich.console import Console

    from cli.event_source import EventFile
    from cli.publisher import Outcome, Publisher

_BODY_BYTES: Final = 8 * 1024 * 1024
"""A batch is cut off before it gets larger; the gateway takes 10 MiB."""
_MESSAGES: Final = 5


@dataclass(frozen=True)
class SendOptions:
    """What to send, where, and how fast.

    Attributes:
        file: NDJSON, plain or gzip; `-` is standard input; None to make events up.
        generate: how many events to make up where there is no file.
        duplicates: copies to add, as a share of the events.
        seed: makes made-up events and the choice of copies repeatable.
        rate: events per second at most; None for no limit.
        retry_for: seconds for which a batch is tried again.
        key: an ingest key, where the gateway has keys.
    """

    file: Path | None = None
    url: str = "http://127.0.0.1:8080"
    batch_size: int = 500
    duplicates: float = 0.0
    generate: int = 0
    seed: int = 0
    rate: float | None = None
    concurrency: int = 4
    retry_for: float = 60.0
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Batch:
    events: list[bytes]
    copies: int


async def send(options: SendOptions, console: Console) -> SendSummary:
    """Send everything; never raises for what the input holds or the gateway answers, but says it.

    Args:
        console: shows progress if it is a terminal.
    """
    import asyncio
    import time

    from cli.publisher import Publisher

    summary = SendSummary(seed=options.seed)
    publisher = Publisher(
        options.url, connections=options.concurrency, retry_for=options.retry_for, key=options.key
    )
    started = time.monotonic()
    with _opened(options) as file, _progress(options, file, console) as show:
        async with publisher:
            sending = _Sending(options, file, publisher, summary, show)
            await asyncio.gather(*(sending.run() for _ in range(options.concurrency)))
    if file is not None:
        summary.unreadable = file.unreadable
        summary.unreadable_lines = file.first_unreadable
        summary.failure = summary.failure or file.failure
    summary.requests, summary.retries = publisher.requests, publisher.retries
    summary.seconds = round(time.monotonic() - started, 3)
    answered = summary.unique + summary.duplicates
    summary.events_per_second = round(answered / summary.seconds, 1) if summary.seconds else 0.0
    return summary


class _Sending:
    """What the concurrent senders share: the events, the pace, the summary."""

    def __init__(
        self,
        options: SendOptions,
        file: EventFile | None,
        publisher: Publisher,
        summary: SendSummary,
        show: Callable[[int], None],
    ) -> None:
        import asyncio

        self._rate = options.rate
        self._publisher = publisher
        self._summary = summary
        self._show = show
        self._batches = _batches(options, file, summary)
        self._turn = asyncio.Lock()
        self._begun: float | None = None
        self._dispatched = 0

    async def run(self) -> None:
        """Send batch after batch until there are none, or one sender has given up."""
        from cli.publisher import GaveUp

        while (batch := await self._next()) is not None:
            try:
                outcome = await self._publisher.publish(batch.events)
            except GaveUp as error:
                self._summary.failure = self._summary.failure or str(error)
                return
            self._add(batch, outcome)

    async def _next(self) -> _Batch | None:
        import asyncio

        async with self._turn:
            if self._summary.failure:
                return None
            # Reading can block, on a pipe for long; requests in flight must not wait for it.
            batch = await asyncio.to_thread(next, self._batches, None)
            if batch is not None and self._rate is not None:
                now = asyncio.get_running_loop().time()
                self._begun = now if self._begun is None else self._begun
                await asyncio.sleep(max(0.0, self._begun + self._dispatched / self._rate - now))
                self._dispatched += len(batch.events)
            return batch

    def _add(self, batch: _Batch, outcome: Outcome) -> None:
        summary = self._summary
        summary.unique += len(batch.events) - batch.copies
        summary.duplicates += batch.copies
        summary.accepted += outcome.accepted
        for code, count in outcome.rejected.items():
            summary.rejected[code] = summary.rejected.get(code, 0) + count
        for message in outcome.messages:
            if len(summary.messages) < _MESSAGES and message not in summary.messages:
                summary.messages.append(message)
        self._show(summary.unique + summary.duplicates)


@contextmanager
def _opened(options: SendOptions) -> Iterator[EventFile | None]:
    """The input, if there is one."""
    from cli.event_source import EventFile

    if options.file is None:
        yield None
    elif str(options.file) == "-":
        # Unbuffered: a buffered read waits for its whole buffer, even when a line has arrived.
        yield EventFile(cast("RawIOBase", getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)))
    else:
        with options.file.open("rb", buffering=0) as stream:
            yield EventFile(stream)


def _batches(options: SendOptions, file: EventFile | None, summary: SendSummary) -> Iterator[_Batch]:
    from random import Random

    from cli.event_source import Duplicator
    from cli.synthetic import synthetic_events

    def counted() -> Iterator[bytes]:
        for event in synthetic_events(options.generate, made_up) if file is None else file:
            summary.events_read += 1
            yield event

    # Independent of each other, so that the events are the same with and without copies.
    made_up, copied = Random(f"{options.seed} events"), Random(f"{options.seed} copies")
    size = options.batch_size
    if options.rate is not None:
        # Ten batches a second make an even flow.
        size = max(1, min(size, int(options.rate / 10)))
    events: list[bytes] = []
    copies = body_bytes = 0
    for event, is_copy in Duplicator(options.duplicates, copied).mix(counted()):
        if events and (len(events) == size or body_bytes + len(event) > _BODY_BYTES):
            yield _Batch(events, copies)
            events, copies, body_bytes = [], 0, 0
        events.append(event)
        copies += is_copy
        body_bytes += len(event) + 1
    if events:
        yield _Batch(events, copies)


@contextmanager
def _progress(
    options: SendOptions, file: EventFile | None, console: Console
) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of events answered for so far."""
    if not console.is_terminal:
        yield lambda answered: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    total: float | None = options.generate + round(options.generate * options.duplicates)
    if file is not None:
        total = file.size
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.fields[answered]:,} events"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total, answered=0, rate=0.0)

        def show(answered: int) -> None:
            elapsed = progress.tasks[0].elapsed or 0.0
            completed = answered if file is None else file.bytes_read
            progress.update(
                task, completed=completed, answered=answered, rate=answered / elapsed if elapsed else 0.0
            )

        yield show


def send_command(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE|-",
            help="Events, one JSON object a line, plain or gzip; `-` is standard input.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="The gateway's address.")] = SendOptions.url,
    batch_size: Annotated[
        int, typer.Option(min=1, max=10_000, help="Events in one request.")
    ] = SendOptions.batch_size,
    duplicates: Annotated[
        float,
        typer.Option(min=0, max=10, help="Copies to add at random, as a share of the events: 0.2 adds 20 %."),
    ] = SendOptions.duplicates,
    generate: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Make up N events; no file is read.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Make the same events and copies again; without it, others each time.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="N", help="At most N events per second.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="Requests under way at a time.")
    ] = SendOptions.concurrency,
    retry_for: Annotated[
        float,
        typer.Option(min=0, help="Seconds to keep trying while the gateway is full or unreachable."),
    ] = SendOptions.retry_for,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Publish events from a file or standard input, or made-up ones.

    Sending the same events again is safe: they are stored once. Exit status 1 if anything was not accepted.
    """
    import asyncio
    import json
    from random import SystemRandom

    from rich.console import Console

    from cli.send_summary import complaints, print_table
    from cli.settings import settings_or_exit

    if (file is None) == (generate is None):
        raise typer.BadParameter("name a file, - for standard input, or --generate N: exactly one of them.")
    if file is not None:
        _check_file(file)
    _check_url(url)
    options = SendOptions(
        file=file,
        url=url,
        batch_size=batch_size,
        duplicates=duplicates,
        generate=generate or 0,
        seed=SystemRandom().randrange(2**32) if seed is None else seed,
        rate=rate,
        concurrency=concurrency,
        retry_for=retry_for,
        key=settings_or_exit().client.secret(),
    )
    notes = Console(stderr=True)
    summary = asyncio.run(send(options, notes))
    if as_json:
        print(json.dumps(asdict(summary)))
    else:
        print_table(summary, Console())
    for sentence in complaints(summary):
        notes.print(sentence, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if summary.complete else 1)


def _check_file(file: Path) -> None:
    if str(file) != "-" and (file.is_dir() or not os.access(file, os.R_OK)):
        raise typer.BadParameter(f"{file} is no file that can be read.", param_hint="FILE")


def _check_url(url: str) -> None:
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise typer.BadParameter(f"{url!r} is no address: {error}.", param_hint="--url") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise typer.BadParameter(
            f"{url!r} is no address; it looks like http://127.0.0.1:8080.", param_hint="--url"
        )
