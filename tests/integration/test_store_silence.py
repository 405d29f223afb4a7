"""A server that falls silent in the middle of things: every wait ends, whatever was being done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from db.engine import open_engine
from db.errors import StoreUnavailable
from db.event_store import EventStore
from db.settings import DatabaseSettings
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.postgres

CONNECT_SECONDS = 2
TRANSACTION_SECONDS = 3.0


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[TcpProxy]:
    """A way to the database that can be cut."""
    proxy = TcpProxy()
    parts = urlsplit(postgres_url)
    assert parts.hostname is not None
    proxy.forward_to(parts.hostname, parts.port or 5432)
    yield proxy
    proxy.close()


@pytest.fixture
def store(postgres_url: str, proxy: TcpProxy) -> Iterator[EventStore]:
    parts = urlsplit(postgres_url)
    user, _, _ = parts.netloc.rpartition("@")
    settings = DatabaseSettings.model_validate(
        {
            "url": urlunsplit(parts._replace(netloc=f"{user}@{proxy.address}")),
            "connect_timeout_seconds": CONNECT_SECONDS,
            "lock_timeout_seconds": 1,
            "statement_timeout_seconds": 2,
            "transaction_timeout_seconds": TRANSACTION_SECONDS,
        }
    )
    engine = open_engine(settings, application_name="silence")
    yield EventStore(engine, "events")
    engine.dispose()


@pytest.mark.parametrize(
    ("connected", "marker"),
    [
        *((True, marker) for marker in ("set_config", "partition_progress", "COMMIT")),
        # What SQLAlchemy asks on an engine's first connection comes besides.
        *((False, m) for m in ("pg_catalog.version()", "set_config", "partition_progress", "COMMIT")),
    ],
    ids=lambda value: {True: "pooled", False: "first connection"}.get(value, value),
)
def test_a_silent_server_is_given_up_in_bounded_time(
    store: EventStore, proxy: TcpProxy, connected: bool, marker: str
) -> None:
    if connected:
        store.positions({0: 0})
    if connected and marker == "set_config":
        proxy.reset_all()
    proxy.silence_after(marker.encode())
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.positions({0: 0})
    assert time.monotonic() - started < CONNECT_SECONDS + TRANSACTION_SECONDS + 1
    proxy.heal()
    assert store.positions({0: 0})[0].next_offset == 0
