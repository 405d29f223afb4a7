"""What a rate takes, reckoned from what `benchmarks.workers` and `benchmarks.gateway` have measured.

Usage: python -m benchmarks.sizing [--update] [--rates N ...]

Prints tables of Markdown, from the figures kept in results/sizing.json; `--update` takes these anew from the
results of the two. It is arithmetic: what was measured, times the rate, times a margin. Where several
machines take part, it supposes that they do not hold each other up.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.result import RESULTS, write

NAME: Final = "sizing"
RATES: Final = (10_000, 100_000, 1_000_000)
MARGIN: Final = 2.0
"""Everything is planned for so many times the rate: to catch up after an outage, and to grow."""
EVENTS_PER_REQUEST: Final = 100
DAYS_REMEMBERED: Final = 7
"""The deduplication window: how long identities are kept."""
CHECKPOINT_SECONDS: Final = 900
SERVER_CORES: Final = 32
SERVER_WAL_MB: Final = 400.0
"""Of one large database server: what its disks can be asked to write durably, per second."""
_PAGE: Final = 8192
_DAY: Final = 86_400
_PARTITIONS_STEP: Final = 6


@dataclass(frozen=True)
class Measured:
    """What one of each was measured to do, on one machine.

    Attributes:
        worker_us, postgres_us, kafka_us: CPU time per record, microseconds.
        gateway_events: events per second of CPU of one gateway, EVENTS_PER_REQUEST in a request.
        wal_bytes: per record, while the index of identities is small.
        disk_bytes, key_index_bytes: per stored event; the latter is a part of the former.
        event_bytes: of JSON, per event.
        stored_share: of the records; the others are duplicates.
    """

    worker_us: float
    postgres_us: float
    kafka_us: float
    gateway_events: float
    wal_bytes: float
    disk_bytes: float
    key_index_bytes: float
    event_bytes: float
    stored_share: float

    @property
    def worker_records(self) -> float:
        """Records a second of a worker with cores of its own, at least: as if it and Postgres took turns.

        It decodes the next batch while Postgres stores one; how far they overlap depends on the machine.
        Reckoned from CPU time, which depends less on what else the machine has to do than the time taken.
        """
        return 1e6 / (self.worker_us + self.postgres_us)


@dataclass(frozen=True)
class Sizing:
    """What it takes to store so many records per second."""

    rate: int
    measured: Measured

    @property
    def gateways(self) -> int:
        return math.ceil(self.rate * MARGIN / self.measured.gateway_events)

    @property
    def workers(self) -> int:
        return math.ceil(self.rate * MARGIN / self.measured.worker_records)

    @property
    def partitions(self) -> int:
        """Twice the workers, so that they can be doubled once more without adding any."""
        return math.ceil(self.workers * 2 / _PARTITIONS_STEP) * _PARTITIONS_STEP

    @property
    def log_mb(self) -> float:
        """Megabytes a second into the log, before compression, one copy."""
        return self.rate * self.measured.event_bytes / 1e6

    @property
    def postgres_cores(self) -> float:
        return self.rate * MARGIN * self.measured.postgres_us / 1e6

    @property
    def rows_per_day(self) -> float:
        return self.rate * self.measured.stored_share * _DAY

    @property
    def disk_gb_per_day(self) -> float:
        return self.rows_per_day * self.measured.disk_bytes / 1e9

    @property
    def key_index_gb(self) -> float:
        """The index that every record asks, once as many days are in it as are remembered."""
        return self.rows_per_day * DAYS_REMEMBERED * self.measured.key_index_bytes / 1e9

    @property
    def wal_mb(self) -> float:
        """Megabytes of WAL a second, all stores together, with the whole index of identities.

        Identities are random, so between two checkpoints nearly every page of a large index is changed, and
        the first change of each writes the page as a whole.
        """
        pages = self.key_index_gb * 1e9 / _PAGE
        changes = self.rate * self.measured.stored_share * CHECKPOINT_SECONDS
        whole_pages = pages * (1 - math.exp(-changes / pages))
        return (self.rate * self.measured.wal_bytes + whole_pages * _PAGE / CHECKPOINT_SECONDS) / 1e6

    @property
    def stores(self) -> int:
        """Database servers, each with a part of the identities."""
        return math.ceil(max(self.postgres_cores / SERVER_CORES, self.wal_mb / SERVER_WAL_MB))


def kept(directory: Path = RESULTS) -> Measured:
    """The figures that the published tables were made of. Raises FileNotFoundError."""
    return Measured(**json.loads((directory / f"{NAME}.json").read_text())["measured"])


def update(directory: Path = RESULTS) -> None:
    """Keep the figures of the latest results. Raises FileNotFoundError if one of the two is missing."""
    workers = json.loads((directory / "workers.json").read_text())
    gateway = json.loads((directory / "gateway.json").read_text())
    document = {
        "measured": asdict(_from_results(workers, gateway)),
        "measured_at": {one["benchmark"]: one["measured_at"] for one in (workers, gateway)},
        "machine": workers["machine"],
    }
    write(NAME, document, directory)


def _from_results(workers: Mapping[str, Any], gateway: Mapping[str, Any]) -> Measured:
    of_workers, settings = _median(workers), workers["settings"]
    return Measured(
        worker_us=of_workers["worker_us_per_record"],
        postgres_us=of_workers["postgres_us_per_record"],
        kafka_us=of_workers["kafka_us_per_record"],
        gateway_events=_median(gateway)[f"events_per_cpu_second_{EVENTS_PER_REQUEST}"],
        wal_bytes=of_workers["wal_bytes_per_record"],
        disk_bytes=of_workers["disk_bytes_per_event"],
        key_index_bytes=of_workers["key_index_bytes_per_event"],
        event_bytes=settings["bytes_per_event"],
        stored_share=settings["distinct"] / settings["records"],
    )


def _median(document: Mapping[str, Any]) -> Mapping[str, float]:
    """Of the contestant that the others were compared with."""
    (outcome,) = [o for o in document["outcomes"] if o["name"] == document["reference"]]
    median: Mapping[str, float] = outcome["median"]
    return median


def inputs_table(figures: Measured) -> str:
    """What the arithmetic starts from, as Markdown."""
    rows = [
        ("CPU µs per record: worker", f"{figures.worker_us:,.1f}"),
        ("CPU µs per record: Postgres", f"{figures.postgres_us:,.1f}"),
        ("CPU µs per record: Kafka, reading only", f"{figures.kafka_us:,.1f}"),
        (
            "so, records/s of one worker, at least (it and Postgres by turns)",
            f"{figures.worker_records:,.0f}",
        ),
        (
            f"events per CPU second of a gateway, {EVENTS_PER_REQUEST} per request",
            f"{figures.gateway_events:,.0f}",
        ),
        ("WAL bytes per record, index small", f"{figures.wal_bytes:,.0f}"),
        ("bytes on disk per stored event, with indexes", f"{figures.disk_bytes:,.0f}"),
        ("of these, index of identities", f"{figures.key_index_bytes:,.0f}"),
        ("bytes of JSON per event", f"{figures.event_bytes:,.0f}"),
    ]
    return _markdown([("one of each", "measured"), *rows])


def sizing_table(figures: Measured, rates: Sequence[int]) -> str:
    """What each rate takes, as Markdown."""
    lines: list[tuple[str, Callable[[Sizing], str]]] = [
        ("gateways, one core each", lambda s: f"{s.gateways:,}"),
        ("into the log, one copy, uncompressed", lambda s: f"{s.log_mb:,.0f} MB/s"),
        ("partitions", lambda s: f"{s.partitions:,}"),
        ("workers, one core each", lambda s: f"{s.workers:,}"),
        ("Postgres, cores", lambda s: f"{s.postgres_cores:,.1f}"),
        ("events stored in a day", lambda s: f"{s.rows_per_day / 1e9:,.1f} billion"),
        ("disk for a day", lambda s: f"{s.disk_gb_per_day / 1e3:,.2f} TB"),
        (f"index of {DAYS_REMEMBERED} days of identities", lambda s: f"{s.key_index_gb:,.0f} GB"),
        ("WAL, with that index", lambda s: f"{s.wal_mb:,.0f} MB/s"),
        ("**database servers**", lambda s: f"**{s.stores:,}**"),
    ]
    sizings = [Sizing(rate, figures) for rate in rates]
    head = ("records/s", *(f"{rate:,}" for rate in rates))
    return _markdown([head, *((title, *(cell(one) for one in sizings)) for title, cell in lines)])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="records per second")
    parser.add_argument("--update", action="store_true", help="take the figures of the latest results")
    arguments = parser.parse_args()
    try:
        if arguments.update:
            update()
        figures = kept()
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: run the benchmark of that name with --write first.")
    sys.stdout.write(f"{inputs_table(figures)}\n{sizing_table(figures, arguments.rates)}")


if __name__ == "__main__":
    main()
