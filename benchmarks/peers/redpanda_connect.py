"""Redpanda Connect, built from the Go module proxy with only the components that are needed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway_stage import Gateway, Running, wait_answering
from benchmarks.peers.cache import cache
from benchmarks.rounds import LeftOut
from benchmarks.servers import run
from benchmarks.sink_stage import LOG, PeerSink
from tests.support.processes import Process, free_port

VERSION: Final = "4.106.0"
_MODULE: Final = "github.com/redpanda-data/connect/v4"
_MAIN: Final = f"""package main

import (
	"context"

	"github.com/redpanda-data/benthos/v4/public/service"

	_ "github.com/lib/pq"
	_ "github.com/redpanda-data/benthos/v4/public/components/io"
	_ "github.com/redpanda-data/benthos/v4/public/components/pure"
	_ "{_MODULE}/public/components/kafka"
	_ "{_MODULE}/public/components/sql/base"
)

func main() {{
	service.RunCLI(context.Background())
}}
"""
_BUILD_SECONDS: Final = 1_800
_ROWS: Final = 5_000
_IN_FLIGHT: Final = 512


def program() -> Path:
    """The program, built on first use. Raises LeftOut."""
    home = cache(f"redpanda-connect-{VERSION}")
    binary = home / "connect"
    if not binary.exists():
        if shutil.which("go") is None:
            raise LeftOut("`go` is not installed; Redpanda Connect is built from its modules.")
        (home / "main.go").write_text(_MAIN)
        (home / "go.mod").write_text("module benchmark\n\ngo 1.24\n")
        options: dict[str, Any] = {"timeout": _BUILD_SECONDS, "cwd": home}
        run(["go", "get", f"{_MODULE}@v{VERSION}"], **options)
        run(["go", "build", "-mod=mod", "-o", str(binary), "."], **options)
    return binary


@contextlib.contextmanager
def stream(name: str, configuration: Mapping[str, Any], directory: Path) -> Iterator[Process]:
    """A process with one stream."""
    file = directory / f"{name}.json"
    # JSON is YAML.
    file.write_text(json.dumps({"logger": {"level": "WARN"}, **configuration}))
    process = Process(name, [str(program()), "run", str(file)], directory / f"{name}.log", {})
    try:
        yield process
        process.terminate()
    finally:
        process.close()


class InsertSink(PeerSink):
    """Batches by count, inserted with ON CONFLICT DO NOTHING, two of them at a time."""

    name = "Redpanda Connect"
    settings: Mapping[str, str] = {
        "version": VERSION,
        "batching": f"{_ROWS:,} records or 500 ms",
        "output": "sql_insert, ON CONFLICT (topic, event_id) DO NOTHING, max_in_flight 2",
    }

    def prepare(self) -> None:
        program()

    @contextlib.contextmanager
    def running(self, url: str, group: str) -> Iterator[Process]:
        kafka = {
            "seed_brokers": [self.stage.broker.bootstrap],
            "topics": [LOG],
            "consumer_group": group,
            "start_from_oldest": True,
            "batching": {"count": _ROWS, "period": "500ms"},
        }
        insert = {
            "driver": "postgres",
            "dsn": f"{url}?sslmode=disable",
            "table": "events",
            "columns": ["topic", "event_id", '"timestamp"', "source", "payload"],
            "args_mapping": "root = [ this.topic, this.event_id, this.timestamp, this.source,"
            " this.payload.format_json(no_indent: true).string() ]",
            "suffix": "ON CONFLICT (topic, event_id) DO NOTHING",
            "max_in_flight": 2,
        }
        configuration = {
            "http": {"enabled": False},
            "input": {"kafka_franz": kafka},
            "output": {"sql_insert": insert},
        }
        with stream(f"redpanda-connect-{group}", configuration, self.stage.directory) as process:
            yield process


class HttpGateway(Gateway):
    """An array is split into its events; it does not look into them otherwise."""

    name = "Redpanda Connect"
    settings: Mapping[str, str] = {
        "version": VERSION,
        "output": f"kafka_franz, acks all, max_in_flight {_IN_FLIGHT}, compression snappy",
        "several events": "unarchive, format json_array",
        "validation": "JSON",
    }

    def prepare(self) -> None:
        program()

    @contextlib.contextmanager
    def running(self, topic: str | None, size: int) -> Iterator[Running]:
        port = free_port()
        kafka = {
            "seed_brokers": [self.stage.broker.bootstrap],
            "topic": topic,
            "acks": "all",
            "compression": "snappy",
            "max_in_flight": _IN_FLIGHT,
        }
        configuration = {
            "http": {"enabled": False},
            "input": {"http_server": {"address": f"127.0.0.1:{port}", "path": "/publish"}},
            "pipeline": {"processors": [{"unarchive": {"format": "json_array"}}] if size > 1 else []},
            "output": {"kafka_franz": kafka},
        }
        with stream(f"redpanda-connect-{topic}-{size}", configuration, self.stage.directory) as process:
            wait_answering(process, port)
            yield Running(process, f"http://127.0.0.1:{port}/publish")
