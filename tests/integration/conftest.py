"""A store with its reader and its writer, and the admin API over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import Engine

from tests.support.admin_client import Admin, admin_over, admin_queries
from tests.support.store_filler import StoreFiller, open_store


@pytest.fixture
def writer(store_url: str) -> Iterator[Engine]:
    engine = open_store(store_url)
    yield engine
    engine.dispose()


@pytest.fixture
def reader(store_url: str) -> Iterator[Engine]:
    engine = open_store(store_url, read_only=True)
    yield engine
    engine.dispose()


@pytest.fixture
def fill(writer: Engine) -> StoreFiller:
    return StoreFiller(writer)


@pytest.fixture
async def admin(reader: Engine, fill: StoreFiller) -> AsyncIterator[Admin]:
    async with admin_over(admin_queries(reader)) as running:
        yield running


@pytest.fixture
async def embedded(sqlite_url: str) -> AsyncIterator[tuple[Admin, StoreFiller]]:
    """For what does not depend on the store."""
    writer, reader = open_store(sqlite_url), open_store(sqlite_url, read_only=True)
    async with admin_over(admin_queries(reader)) as running:
        yield running, StoreFiller(writer)
    reader.dispose()
    writer.dispose()
