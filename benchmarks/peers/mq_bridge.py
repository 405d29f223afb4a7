"""mq-bridge, a bridge between brokers and databases with a core in Rust, from its Python package."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import end_to_end_stage
from benchmarks.end_to_end_stage import EndToEnd
from benchmarks.gateway_stage import Gateway, Running, wait_answering
from benchmarks.peers.cache import cache
from benchmarks.servers import run
from benchmarks.sink_stage import LOG, LOG_WITH_TEXT, PeerSink
from benchmarks.workload import Event
from tests.support.processes import Process, free_port

VERSION: Final = "1.2.0"
_ROUTE: Final = Path(__file__).with_name("mq_bridge_route.py")
_ROWS: Final = 5_000
_REQUESTS: Final = 512


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


def _to_database(
    bootstrap: str, topic: str, group: str, url: str, output: Mapping[str, Any]
) -> dict[str, Any]:
    kafka = {
        "url": bootstrap,
        "topic": topic,
        "group_id": group,
        "consumer_options": [["auto.offset.reset", "earliest"]],
    }
    return {
        "input": {"kafka": kafka},
        "output": {"sqlx": {"url": url, "table": "events", **output}},
        "batch_size": _ROWS,
    }


def _to_log(bootstrap: str, topic: str | None, port: int, size: int) -> dict[str, Any]:
    http: dict[str, Any] = {
        "url": f"127.0.0.1:{port}",
        "path": "/publish",
        "concurrency_limit": 512,
        "internal_buffer_size": 1024,
    }
    kafka = {
        "url": bootstrap,
        "topic": topic,
        "producer_options": [["acks", "all"], ["compression.codec", "snappy"], ["linger.ms", "1"]],
    }
    source: dict[str, Any] = {"http": http}
    if size > 1:
        source["middlewares"] = [{"unpack": {"format": "benthos_binary"}}]
    return {"input": source, "output": {"kafka": kafka}, "batch_size": _REQUESTS}


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
        bootstrap = self.stage.broker.bootstrap
        configuration = _to_database(bootstrap, self.log, group, url, self.output)
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


class HttpGateway(Gateway):
    """One event per request is a record; of more, each is a record of an archive that it unpacks.

    It does not look into events: whatever arrives goes to the log.
    """

    name = "mq-bridge"
    dialect = "benthos-archive"
    content_type = "application/octet-stream"

    @property
    def settings(self) -> Mapping[str, str]:
        return {
            "version": VERSION,
            "batch_size": str(_REQUESTS),
            "http": "concurrency_limit 512, internal_buffer_size 1,024",
            "producer": "acks=all, compression snappy, linger 1 ms",
            "several events": "unpack, format benthos_binary",
            "validation": "none",
        }

    def prepare(self) -> None:
        python()

    def body(self, events: Sequence[Event]) -> bytes:
        if len(events) == 1:
            return events[0].value
        parts = [len(events).to_bytes(4, "big")]
        for event in events:
            parts += (len(event.value).to_bytes(4, "big"), event.value)
        return b"".join(parts)

    @contextlib.contextmanager
    def running(self, topic: str | None, size: int) -> Iterator[Running]:
        port = free_port()
        configuration = _to_log(self.stage.broker.bootstrap, topic, port, size)
        with route(f"mq-bridge-{topic}-{size}", configuration, self.stage.directory) as process:
            wait_answering(process, port)
            yield Running(process, f"http://127.0.0.1:{port}/publish")


class Pipeline(EndToEnd):
    """Its gateway and its upsert, a process each."""

    name = "mq-bridge, gateway and upsert"

    @property
    def settings(self) -> Mapping[str, str]:
        return {
            "version": VERSION,
            "gateway": f"batch_size {_REQUESTS}, acks=all, compression snappy, linger 1 ms, no validation",
            "sink": f"batch_size {_ROWS:,}, {UpsertSink.text}",
            "partitions": str(self.partitions),
        }

    def prepare(self) -> None:
        python()

    @contextlib.contextmanager
    def running(self, topic: str, url: str) -> Iterator[end_to_end_stage.Running]:
        port, bootstrap = free_port(), self.stage.broker.bootstrap
        sink = _to_database(bootstrap, topic, topic, url, UpsertSink.output)
        gateway = _to_log(bootstrap, topic, port, size=1)
        directory = self.stage.directory
        with (
            route(f"{topic}-sink", sink, directory) as worker,
            route(f"{topic}-gateway", gateway, directory) as taking,
        ):
            wait_answering(taking, port)
            yield end_to_end_stage.Running(port, taking, worker)
