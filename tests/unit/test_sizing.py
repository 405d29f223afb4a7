"""The arithmetic of what a rate takes, and the page that shows it."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.sizing import MARGIN, RATES, Measured, Sizing, inputs_table, kept, sizing_table
from tests.support.processes import REPOSITORY

ONE_OF_EACH = Measured(
    worker_us=20,
    postgres_us=30,
    kafka_us=2,
    gateway_events=100_000,
    wal_bytes=1_000,
    disk_bytes=800,
    key_index_bytes=40,
    event_bytes=300,
    stored_share=0.8,
)
PAGE = REPOSITORY / "docs/explanation/scale.md"


def test_everything_is_planned_with_the_margin_and_in_whole_processes() -> None:
    small = Sizing(10_000, ONE_OF_EACH)
    assert (small.gateways, small.workers, small.partitions) == (1, 1, 6)
    assert small.postgres_cores == pytest.approx(10_000 * MARGIN * 30e-6)
    large = Sizing(1_000_000, ONE_OF_EACH)
    # A worker of 20 µs and a database of 30 µs take turns: 20,000 records a second.
    assert (large.gateways, large.workers) == (20, 100)
    assert large.partitions >= 2 * large.workers
    assert large.rows_per_day == pytest.approx(100 * small.rows_per_day)


def test_wal_grows_with_the_index_until_every_record_writes_a_page_of_its_own() -> None:
    rate = 10_000
    nothing_remembered = dataclasses.replace(ONE_OF_EACH, key_index_bytes=1e-6)
    assert Sizing(rate, nothing_remembered).wal_mb == pytest.approx(rate * 1_000 / 1e6, rel=0.01)
    huge = dataclasses.replace(ONE_OF_EACH, key_index_bytes=1e6)
    assert Sizing(rate, huge).wal_mb == pytest.approx(rate * (1_000 + 0.8 * 8_192) / 1e6, rel=0.01)
    ordinary = Sizing(rate, ONE_OF_EACH).wal_mb
    assert Sizing(rate, nothing_remembered).wal_mb < ordinary < Sizing(rate, huge).wal_mb


def test_a_rate_that_one_server_cannot_take_is_divided_among_several() -> None:
    assert Sizing(10_000, ONE_OF_EACH).stores == 1
    assert Sizing(1_000_000, ONE_OF_EACH).stores > 1
    slow_disks_matter = Sizing(100_000, dataclasses.replace(ONE_OF_EACH, wal_bytes=50_000))
    assert slow_disks_matter.stores > Sizing(100_000, ONE_OF_EACH).stores


def test_the_page_holds_the_tables_of_the_results_that_are_kept() -> None:
    figures = kept()
    page = PAGE.read_text()
    assert inputs_table(figures) in page, "run `python -m benchmarks.sizing` and put its tables into the page"
    assert sizing_table(figures, RATES) in page
