"""What one writes first: two small services that answer once an event is durable, and no sooner.

Usage: python -m benchmarks.predecessors sqlite|sqlite-at-once|postgres PORT PATH|URL

`sqlite`: FastAPI, an asyncio.Queue, and a task that inserts one event after the other. `postgres`: FastAPI,
and an insert awaited in the request. Both keep the first event of an identity; neither knows conflicts,
counters or dead letters. The usual first version of `sqlite` answers before anything is written
(`sqlite-at-once`); this one waits for it.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

CONNECTIONS = 32
TABLE = """
CREATE TABLE IF NOT EXISTS events (topic text NOT NULL, event_id text NOT NULL, "timestamp" text NOT NULL,
    source text NOT NULL, payload text NOT NULL, PRIMARY KEY (topic, event_id))
"""


class Event(BaseModel):
    topic: str
    event_id: str
    timestamp: datetime
    source: str
    payload: dict[str, Any]

    def row(self) -> tuple[str, str, str, str, str]:
        return self.topic, self.event_id, self.timestamp.isoformat(), self.source, json.dumps(self.payload)


def with_sqlite(path: str, *, waits: bool = True) -> FastAPI:
    """One INSERT and one commit per event, from a queue."""
    queue: asyncio.Queue[tuple[Event, asyncio.Future[None]]] = asyncio.Queue()

    async def store() -> None:
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(TABLE)

        def insert(event: Event) -> None:
            connection.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", event.row())
            connection.commit()

        while True:
            event, stored = await queue.get()
            await asyncio.to_thread(insert, event)
            stored.set_result(None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(store())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/publish")
    async def publish(events: Event | list[Event]) -> dict[str, int]:
        items = events if isinstance(events, list) else [events]
        loop = asyncio.get_running_loop()
        waiting = []
        for event in items:
            stored: asyncio.Future[None] = loop.create_future()
            queue.put_nowait((event, stored))
            waiting.append(stored)
        if waits:
            await asyncio.gather(*waiting)
        return {"accepted": len(items)}

    return app


def with_postgres(url: str) -> FastAPI:
    """One INSERT and one commit per event, awaited in the request, on a connection out of some."""
    idle: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        connections = [
            await psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(CONNECTIONS)
        ]
        await connections[0].execute(TABLE)
        for connection in connections:
            idle.put_nowait(connection)
        yield
        for connection in connections:
            await connection.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/publish")
    async def publish(events: Event | list[Event]) -> dict[str, int]:
        items = events if isinstance(events, list) else [events]
        connection = await idle.get()
        try:
            for event in items:
                await connection.execute(
                    "INSERT INTO events VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING", event.row()
                )
        finally:
            idle.put_nowait(connection)
        return {"accepted": len(items)}

    return app


if __name__ == "__main__":
    kind, port, place = sys.argv[1:]
    makers: dict[str, Callable[[str], FastAPI]] = {
        "sqlite": with_sqlite,
        "sqlite-at-once": partial(with_sqlite, waits=False),
        "postgres": with_postgres,
    }
    application = makers[kind](place)
    uvicorn.run(application, host="127.0.0.1", port=int(port), access_log=False, log_level="warning")
