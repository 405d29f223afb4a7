"""The benchmarks' own instruments: what they send, how they count, and what the page says of it."""

from __future__ import annotations

import gzip
import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.http_client import send_all, send_at_rate
from benchmarks.page import page
from benchmarks.resources import used
from benchmarks.result import Column, Table
from benchmarks.rounds import Figures, LeftOut, Outcome, run_rounds
from benchmarks.workload import DATA_VARIABLE, DUPLICATE_SHARE, with_text_payload, workload

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
_REFUSAL = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def real_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.ndjson.gz"
    with gzip.open(file, "wt") as lines:
        for number in range(50):
            event = {
                "topic": "t",
                "event_id": f"{number:040x}",
                "timestamp": "2026-01-01T00:00:00+02:00",
                "source": "s",
                "payload": {"n": number},
            }
            lines.write(json.dumps(event) + "\n")
    monkeypatch.setenv(DATA_VARIABLE, str(file))


@pytest.mark.usefixtures("real_events")
def test_a_fifth_of_the_records_are_copies_of_earlier_ones() -> None:
    load = workload(1_000, last=10)
    seen: set[str] = set()
    copies = 0
    for event in load.events:
        copies += event.event_id in seen
        seen.add(event.event_id)
    assert len(load.events) == 1_000
    assert copies == 1_000 * DUPLICATE_SHARE
    assert len(seen) == load.distinct
    assert (
        len({event.event_id for event in load.events[-10:]} - {e.event_id for e in load.events[:-10]}) == 10
    )


@pytest.mark.usefixtures("real_events")
def test_a_payload_as_text_holds_the_same_document() -> None:
    (event,) = workload(1).events
    document = json.loads(with_text_payload(event))
    assert {**document, "payload": json.loads(document["payload"])} == json.loads(event.value)


def test_missing_data_are_said_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "none.gz"))
    with pytest.raises(LeftOut, match=DATA_VARIABLE):
        workload(1)


class _Server(socketserver.ThreadingTCPServer):
    """Gives every request the same answer; stalls all of them at the request with a number in `stalls`."""

    daemon_threads = False

    def __init__(self, answer: bytes, stalls: Mapping[int, float]) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.bodies: list[bytes] = []
        self.answer = answer
        self._stalls = stalls
        self._lock = threading.Lock()

    def take(self, body: bytes) -> None:
        with self._lock:
            self.bodies.append(body)
            time.sleep(self._stalls.get(len(self.bodies), 0))


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        length = 0
        while line := self.rfile.readline():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            if line == b"\r\n":
                self.server.take(self.rfile.read(length))
                self.wfile.write(self.server.answer)


@contextmanager
def _serving(
    answer: bytes = _ANSWER, stalls: Mapping[int, float] | None = None
) -> Iterator[tuple[_Server, int]]:
    with _Server(answer, stalls or {}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server, server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)


def test_every_body_is_sent_exactly_once() -> None:
    bodies = [b"%d" % number for number in range(200)]
    with _serving() as (server, port):
        sent = send_all(port, bodies, connections=8)
    assert sorted(server.bodies) == sorted(bodies)
    assert sent.refused == 0


def test_a_refusal_is_counted() -> None:
    with _serving(_REFUSAL) as (_, port):
        assert send_all(port, [b"x"] * 5, connections=2).refused == 5


def test_a_stalled_server_delays_every_event_that_was_due_meanwhile() -> None:
    with _serving(stalls={50: 0.5}) as (_, port):
        sent = send_at_rate(port, [b"x"] * 300, per_second=500, connections=2)
    late = [latency for latency in sent.latencies_ms() if latency > 100]
    # Half a second at 500 a second; with two connections a closed loop would see two late answers.
    assert len(late) > 100
    assert max(late) >= 400


def test_cpu_time_of_a_process_and_its_children_is_counted() -> None:
    before = used(os.getpid())
    began = time.process_time()
    while time.process_time() < began + 0.2:
        pass
    after = used(os.getpid())
    assert after.cpu_seconds - before.cpu_seconds >= 0.15
    assert after.peak_rss_mb > 10


class _Contestant:
    settings: Mapping[str, str] = {}

    def __init__(self, name: str, journal: list[str], *, fails: int = 0, missing: bool = False) -> None:
        self.name = name
        self._journal = journal
        self._fails = fails
        self._missing = missing

    def prepare(self) -> None:
        if self._missing:
            raise LeftOut("it is not installed")

    def measure(self) -> Figures:
        self._journal.append(self.name)
        if self._fails:
            self._fails -= 1
            raise LeftOut("it ended early")
        return {"speed": float(len(self._journal))}


def test_contestants_take_turns_and_each_round_begins_with_another() -> None:
    journal: list[str] = []
    run_rounds([_Contestant(name, journal) for name in "abc"], 3)
    assert journal == [*"abc", *"bca", *"cab"]


def test_one_that_cannot_be_prepared_is_left_out_with_the_reason() -> None:
    journal: list[str] = []
    outcomes = run_rounds([_Contestant("a", journal), _Contestant("b", journal, missing=True)], 2)
    assert journal == ["a", "a"]
    assert outcomes[1].left_out == "it is not installed"


def test_one_failed_round_is_noted_and_two_end_it() -> None:
    journal: list[str] = []
    once, twice = run_rounds([_Contestant("a", journal, fails=1), _Contestant("b", journal, fails=9)], 4)
    assert (len(once.rounds), once.left_out, once.failures) == (3, None, ["it ended early"])
    assert (len(twice.rounds), twice.left_out) == (0, "it ended early")
    assert journal.count("b") == 2


def _result() -> dict[str, Any]:
    ours = Outcome("aggregator worker", {}, [{"speed": 10.0, "cost": 4.0}, {"speed": 30.0, "cost": 4.0}])
    rival = Outcome("rival", {}, [{"speed": 10.0, "cost": 2.0}])
    limit = Outcome("limit: COPY", {}, [{"speed": 99.0}])
    gone = Outcome("gone", {}, left_out="it cannot be built")
    columns = [Column("speed", "events/s", more_is_better=True), Column("cost", "CPU")]
    return {
        "measured_at": "2026-01-01T00:00:00+00:00",
        "load_average_at_start": [0.1, 0.2, 0.3],
        "machine": {"processor": "p", "cores": 2, "memory_gb": 24, "system": "Linux"},
        "versions": {"event-aggregator": "abc", "python": "3.11"},
        "settings": {},
        "tables": [{"title": "Speed", "columns": [column._asdict() for column in columns]}],
        "reference": "aggregator worker",
        "outcomes": [outcome.as_json() for outcome in (ours, rival, limit, gone)],
    }


def test_a_table_shows_medians_spread_and_ratio_to_ours() -> None:
    result = _result()
    rows = Table("", [Column("speed", "events/s")]).rows(result["outcomes"], "aggregator worker")
    assert rows == [
        ["", "events/s", "spread", "ratio"],
        ["aggregator worker", "20", "± 50%", "1.00"],
        ["rival", "10", "± 0%", "0.50"],
        ["limit: COPY", "99", "± 0%", "4.95"],
    ]


def test_a_zero_has_no_spread_and_no_ratio() -> None:
    none = Outcome("aggregator worker", {}, [{"lost": 0.0}])
    assert Table("", [Column("lost", "lost")]).rows([none.as_json()], "aggregator worker")[1:] == [
        ["aggregator worker", "0", "–", "–"]
    ]


def test_the_page_draws_who_does_the_whole_job() -> None:
    text = "\n".join(page({"sink": _result()}))
    assert 'x-axis ["aggregator worker", "rival"]' in text
    assert "bar [20, 10]" in text


def test_the_page_shows_what_grows() -> None:
    sizes = [
        {
            "size": size,
            "records_per_second": 1e9 / size,
            "wal_bytes_per_record": 600.0,
            "table_bytes_per_event": 400.0,
            "index_bytes_per_event": 100.0,
            "routes": {"/stats": {"p50_ms": 1.0, "p99_ms": size / 1e6}},
        }
        for size in (1_000_000, 10_000_000)
    ]
    dropped = {"dropping_seconds": 0.5, "records_per_second": 90.0}
    settings = {"records": 1_000, "rounds": 3}
    scale = {**_result(), "sizes": sizes, "while_a_day_is_dropped": dropped, "settings": settings}
    text = "\n".join(page({}, scale=scale))
    assert "| `/stats` p99 ms | 1.0 | 10.0 |" in text
    assert "line [1000, 100]" in text
    assert "(0.5 s)" in text


def test_the_page_names_what_others_do_better_and_who_is_left_out() -> None:
    text = "\n".join(page({"sink": _result()}))
    _, behind = text.split("## What others do better")
    assert "rival 2, ours 4" in behind
    assert "COPY" not in behind
    assert "events/s" not in behind
    assert "gone. it cannot be built" in text
