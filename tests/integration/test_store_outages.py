"""What the store does when its database is slow, locked, full, gone, or silent in the middle of a commit."""

from __future__ import annotations

import contextlib
import select
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from db.engine import open_engine, transaction
from db.errors import SchemaMismatch, StoreError, StoreUnavailable
from db.event_store import EventStore
from db.migrations import upgrade
from db.settings import DatabaseSettings
from tests.support.batches import PartitionLog
from tests.support.postgres import ProcessServer, Server, create_database

Open = Callable[..., Engine]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens engines that are closed at the end."""
    engines: list[Engine] = []

    def open_one(url: str, *, read_only: bool = False, **other: Any) -> Engine:
        settings = DatabaseSettings.model_validate({"url": url, **other})
        engines.append(open_engine(settings, application_name="test", read_only=read_only))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.dispose()


def stored_events(engine: Engine) -> int:
    with engine.connect() as connection:
        found: int = connection.execute(text("SELECT count(*) FROM events")).scalar_one()
        return found


class SilentProxy:
    """A TCP proxy that, once armed, passes everything on until a client says COMMIT, and nothing after it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.armed = threading.Event()
        self.silent = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="silent-proxy")
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.ExitStack() as sockets:
            peers: dict[socket.socket, socket.socket] = {}
            clients: set[socket.socket] = set()
            while not self._ended.is_set():
                for ready in select.select([self._listener, *peers], [], [], 0.02)[0]:
                    if ready is self._listener:
                        client = sockets.enter_context(self._listener.accept()[0])
                        server = sockets.enter_context(socket.create_connection(self._target))
                        peers |= {client: server, server: client}
                        clients.add(client)
                        continue
                    data = ready.recv(65_536)
                    if not data:
                        peers.pop(ready)
                    elif ready in clients:
                        peers[ready].sendall(data)
                        if self.armed.is_set() and b"COMMIT" in data:
                            self.silent.set()
                    elif not self.silent.is_set():
                        peers[ready].sendall(data)


@pytest.mark.postgres
def test_a_commit_without_an_answer_ends_in_time_and_the_position_tells_its_outcome(
    postgres_url: str, opened: Open
) -> None:
    direct = EventStore(opened(postgres_url), "events")
    log = PartitionLog()
    direct.positions({0: 0})
    url = make_url(postgres_url)
    assert url.host is not None
    proxy = SilentProxy(url.host, url.port or 5432)
    try:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        engine = opened(
            through,
            transaction_timeout_seconds=2,
            statement_timeout_seconds=1,
            lock_timeout_seconds=1,
            pool_size=1,
        )
        store = EventStore(engine, "events")
        # Connecting asks the server questions of its own.
        store.write(log.batch([]))
        proxy.armed.set()
        before = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.write(log.batch([log.event("a"), log.event("b")]))
        assert time.monotonic() - before < 10
        assert proxy.silent.is_set()
    finally:
        proxy.close()

    assert direct.positions({0: 0})[0].next_offset == log.next_offset
    assert stored_events(opened(postgres_url)) == 2


@pytest.mark.postgres
def test_a_connection_that_was_lost_while_idle_is_replaced_unnoticed(postgres_url: str, opened: Open) -> None:
    log = PartitionLog()
    store = EventStore(opened(postgres_url), "events")
    store.positions({0: 0})
    store.write(log.batch([log.event("a")]))
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'test' AND datname = current_database()"
        )

    assert store.write(log.batch([log.event("b")])).stored == 1


@pytest.mark.postgres
def test_a_lock_held_by_another_session_is_waited_for_and_then_an_outage(
    postgres_url: str, opened: Open
) -> None:
    log = PartitionLog()
    store = EventStore(opened(postgres_url, lock_timeout_seconds=0.2), "events")
    store.positions({0: 0})
    batch = log.batch([log.event("a")])
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE event_keys IN SHARE MODE")
        with pytest.raises(StoreUnavailable, match="55P03"):
            store.write(batch)

    assert store.write(batch).stored == 1


@pytest.mark.postgres
def test_a_server_that_became_read_only_is_waited_for(postgres_url: str, opened: Open) -> None:
    log = PartitionLog()
    engine = opened(postgres_url, pool_size=1)
    store = EventStore(engine, "events")
    store.positions({0: 0})
    batch = log.batch([log.event("a")])
    name = make_url(postgres_url).database

    def read_only(setting: str) -> None:
        with psycopg.connect(
            postgres_url, autocommit=True, options="-c default_transaction_read_only=off"
        ) as other:
            other.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {setting}'.encode())

    read_only("on")
    engine.dispose()
    with pytest.raises(StoreUnavailable, match="25006"):
        store.write(batch)
    read_only("off")

    # The connection that was read-only is not used again.
    assert store.write(batch).stored == 1


@pytest.mark.postgres
def test_a_crashed_server_is_an_outage_until_it_is_back(postgres_server: Server, opened: Open) -> None:
    if not isinstance(postgres_server, ProcessServer):
        pytest.skip("the server of this run is not ours to stop")
    own = ProcessServer(postgres_server.binaries)
    try:
        engine = opened(create_database(own.url, "crash"), connect_timeout_seconds=2)
        upgrade(engine)
        log = PartitionLog()
        store = EventStore(engine, "events")
        store.positions({0: 0})
        store.write(log.batch([log.event("a")]))
        batch = log.batch([log.event("b")])
        own.stop(immediate=True)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.write(batch)
        own.start()

        assert store.write(batch).stored == 1
        assert stored_events(engine) == 2
    finally:
        own.close()


@pytest.mark.postgres
def test_a_session_has_the_settings_promised(postgres_url: str, opened: Open) -> None:
    engine = opened(
        postgres_url, statement_timeout_seconds=9, lock_timeout_seconds=3, transaction_timeout_seconds=14
    )
    expected = {
        "TimeZone": "UTC",
        "statement_timeout": "9s",
        "lock_timeout": "3s",
        "idle_in_transaction_session_timeout": "14s",
        "application_name": "test",
    }
    with transaction(engine) as connection:
        found = {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in expected}
    assert found == expected


def test_a_reading_engine_sees_what_is_committed_and_cannot_write(store_url: str, opened: Open) -> None:
    log = PartitionLog()
    writer, reader = opened(store_url), opened(store_url, read_only=True)
    store = EventStore(writer, "events")
    store.positions({0: 0})
    store.write(log.batch([log.event("a")]))

    assert stored_events(reader) == 1
    with pytest.raises(StoreError), transaction(reader) as connection:
        connection.execute(text("DELETE FROM events"))
    assert stored_events(reader) == 1


def test_a_missing_schema_is_named(tmp_path: Path, opened: Open) -> None:
    store = EventStore(opened(f"sqlite:///{tmp_path / 'new.db'}"), "events")
    with pytest.raises(SchemaMismatch, match="aggregator db upgrade"):
        store.positions({0: 0})


def test_sqlite_is_durable_and_has_one_writer(sqlite_url: str, opened: Open) -> None:
    engine = opened(sqlite_url, lock_timeout_seconds=0.1, statement_timeout_seconds=1)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        with pytest.raises(StoreUnavailable), transaction(engine):
            pass


def test_another_process_writing_to_sqlite_is_waited_for(sqlite_url: str, opened: Open) -> None:
    log = PartitionLog()
    store = EventStore(opened(sqlite_url, lock_timeout_seconds=0.1, statement_timeout_seconds=1), "events")
    store.positions({0: 0})
    batch = log.batch([log.event("a")])
    other = sqlite3.connect(make_url(sqlite_url).database or "", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            store.write(batch)
        other.execute("ROLLBACK")

    assert store.write(batch).stored == 1


def test_a_full_disk_writes_nothing_and_is_recovered_from(sqlite_url: str, opened: Open) -> None:
    log = PartitionLog()
    engine = opened(sqlite_url)
    store = EventStore(engine, "events")
    store.positions({0: 0})
    batch = log.batch([log.event(f"{number}", text="x" * 2_000) for number in range(50)])
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 5}")

    for attempt in (store.write, store.find_rejected):
        with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
            attempt(batch)
    assert stored_events(engine) == 0
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")

    assert store.write(batch).stored == 50
