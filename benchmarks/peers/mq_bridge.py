"""mq-bridge, a bridge between brokers and databases with a core in Rust, from its Python package."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.cache import cache
from benchmarks.servers import run
from benchmarks.sink_stage import LOG, LOG_WITH_TEXT, PeerSink
from tests.support.processes import Process

VERSION: Final = "1.2.0"
_ROUTE: Final = Path(__file__).with_name("mq_bridge_route.py")
_ROWS: Final = 5_000


def python() -> Path:
    """The Python of an environment with mq-bridge, made on first use. Raises LeftOut."""
    home = cache(f"mq-bridge-{VERSION}")
    program = home / "bin" / "python"
    if not (home / "ready").exists():
        shutil.rmtree(home)
        run([sys.executable, "-m", "venv", str(home)], timeout=120)
        pip = [str(program), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run([*pip, f"mq-bridge=={VERSION}"], timeout=300)
        (home / "ready").touch()
    return program


@contextlib.contextmanager
def route(name: str, configuration: Mapping[str, Any], directory: Path) -> Iterator[Process]:
    """A process with one route."""
    file = directory / f"{name}.json"
    file.write_text(json.dumps(configuration))
    process = Process(name, [str(python()), "-P", str(_ROUTE), str(file)], directory / f"{name}.log", {})
    try:
        yield process
        process.terminate()
    finally:
        process.close()


class _Sink(PeerSink):
    """The consumer side is common to both ways of writing."""

    log: str = LOG
    output: Mapping[str, Any] = {}
    text: str = ""

    @property
    def settings(self) -> Mapping[str, str]:
        return {"version": VERSION, "batch_size": f"{_ROWS:,}", "concurrency": "1", "output": self.text}

    def prepare(self) -> None:
        python()

    @contextlib.contextmanager
    def running(self, url: str, group: str) -> Iterator[Process]:
        kafka = {
            "url": self.stage.broker.bootstrap,
            "topic": self.log,
            "group_id": group,
            "consumer_options": [["auto.offset.reset", "earliest"]],
        }
        configuration = {
            "input": {"kafka": kafka},
            "output": {"sqlx": {"url": url, "table": "events", **self.output}},
            "batch_size": _ROWS,
        }
        with route(f"mq-bridge-{group}", configuration, self.stage.directory) as process:
            yield process


class UpsertSink(_Sink):
    """By name into columns, rows with a known key updated."""

    name = "mq-bridge, upsert"
    output: Mapping[str, Any] = {"columns": "auto", "key": "topic,event_id"}
    text = "columns: auto, key: topic,event_id"


class InsertSink(_Sink):
    """By a statement of ours, which its documentation calls the fastest way to insert.

    A token takes no object, so the payload has to arrive as a string.
    """

    name = "mq-bridge, insert_query"
    log = LOG_WITH_TEXT
    text = "insert_query with ON CONFLICT DO NOTHING; the payload as a string in the log"
    output: Mapping[str, Any] = {
        "insert_query": (
            'INSERT INTO events (topic, event_id, "timestamp", source, payload) VALUES (${payload:topic},'
            " ${payload:event_id}, ${payload:timestamp}::timestamptz, ${payload:source},"
            " ${payload:payload}::json) ON CONFLICT (topic, event_id) DO NOTHING"
        )
    }
