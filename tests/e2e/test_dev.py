"""`aggregator dev` as a newcomer meets it: one process, no configuration, nothing lost by killing it."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.data import real_events
from tests.support.processes import REPOSITORY, Process, aggregator, free_port, wait_ready, wait_until


class Dev:
    """`aggregator dev` on a data directory, restartable on the same port."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.log = directory / "dev.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[Process]:
        command = ("dev", "--port", str(self.port), "--data-dir", str(self.data), *arguments)
        with aggregator("dev", *command, log=self.log) as process:
            wait_ready(process, self.url)
            yield process

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/stats").raise_for_status().json()
        return answer

    def settled(self) -> dict[str, Any]:
        """Statistics once every record of the log has its verdict."""

        def all_done() -> dict[str, Any] | None:
            stats = self.stats()
            return stats if stats["queue_depth"] == 0 else None

        return wait_until(all_done, 60.0, "queue_depth 0")

    def send(self, *arguments: str, stdin: bytes | None = None) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "send", *arguments, "--url", self.url, "--json"],
            cwd=REPOSITORY,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr.decode()
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary


@pytest.fixture
def dev(tmp_path: Path) -> Dev:
    return Dev(tmp_path)


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "topic": "t",
        "event_id": str(number),
        "timestamp": "2026-01-01T00:00:00Z",
        "source": "test",
        "payload": {"n": number},
        **changes,
    }


def counts(stats: dict[str, Any]) -> tuple[int, int, int, int, int]:
    return (
        stats["received"],
        stats["unique_processed"],
        stats["duplicate_dropped"],
        stats["conflicting"],
        stats["dead_lettered"],
    )


def test_events_are_counted_exactly_across_restarts_and_repetition(dev: Dev) -> None:
    with dev.running() as process:
        sent = dev.send("--generate", "2000", "--seed", "1", "--duplicates", "0.2")
        assert (sent["unique"], sent["duplicates"]) == (2000, 400)
        assert counts(dev.settled()) == (2400, 2000, 400, 0, 0)
        assert process.terminate() == 0
    with dev.running():
        assert counts(dev.settled()) == (2400, 2000, 400, 0, 0)
        dev.send("--generate", "2000", "--seed", "1")
        assert counts(dev.settled()) == (4400, 2000, 2400, 0, 0)


def test_the_real_data_arrives_exactly(dev: Dev) -> None:
    path = real_events()
    lines = len(gzip.decompress(path.read_bytes()).splitlines())
    with dev.running():
        sent = dev.send(str(path), "--duplicates", "0.2")
        assert sent["unique"] == lines
        stats = dev.settled()
        assert counts(stats) == (lines + sent["duplicates"], lines, sent["duplicates"], 0, 0)
        again = dev.send("-", stdin=path.read_bytes())
        assert again["unique"] == lines
        assert counts(dev.settled())[:3] == (
            2 * lines + sent["duplicates"],
            lines,
            lines + sent["duplicates"],
        )
        exported = 0
        with httpx.stream("GET", f"{dev.url}/events/export", timeout=60) as export:
            for line in export.iter_lines():
                assert "event_id" in json.loads(line)
                exported += 1
        assert exported == lines


def test_kill_9_at_any_moment_loses_no_acknowledged_event_and_no_count(dev: Dev) -> None:
    moments = random.Random(7)
    acknowledged: set[str] = set()
    attempted = 0
    stopping = threading.Event()

    def publish() -> None:
        nonlocal attempted
        with httpx.Client(timeout=5.0) as client:
            while not stopping.is_set():
                first = attempted
                attempted += 20
                batch = [event(n) for n in range(first, first + 20)]
                with contextlib.suppress(httpx.TransportError):
                    if client.post(f"{dev.url}/publish", json=batch).status_code == 200:
                        acknowledged.update(e["event_id"] for e in batch)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for _ in range(4):
            with dev.running() as process:
                before = len(acknowledged)
                enough = before + moments.randint(40, 800)
                _wait_for_more(acknowledged, enough, process)
                process.kill()
    finally:
        stopping.set()
        publisher.join()
    with dev.running():
        stats = dev.settled()
        stored = set()
        with httpx.stream("GET", f"{dev.url}/events/export", timeout=60) as export:
            stored = {json.loads(line)["event_id"] for line in export.iter_lines()}
    assert acknowledged <= stored
    assert stored <= {str(n) for n in range(attempted)}
    assert counts(stats) == (len(stored), len(stored), 0, 0, 0)


def _wait_for_more(acknowledged: set[str], enough: int, process: Process) -> None:
    wait_until(lambda: len(acknowledged) >= enough, 30.0, f"{enough} acknowledged events", process)


def test_an_event_can_be_read_back_with_its_story(dev: Dev) -> None:
    with dev.running():
        published = [event(1, payload={"text": "naïve ☃"}), event(1, payload={"text": "other"}), event(2)]
        httpx.post(f"{dev.url}/publish", json=published).raise_for_status()
        assert counts(dev.settled()) == (3, 2, 0, 1, 0)
        found = httpx.get(f"{dev.url}/events/t/1").raise_for_status().json()
        letters = httpx.get(f"{dev.url}/dead-letters").raise_for_status().json()
    assert found["event"]["payload"] == {"text": "naïve ☃"}
    assert [letter["reason"] for letter in letters["dead_letters"]] == ["conflicting_duplicate"]


def test_the_curl_line_it_prints_works_when_pasted(dev: Dev) -> None:
    with dev.running() as process:
        printed = process.output()
        start = printed.index("curl ")
        command = printed[start : printed.index("\n\n", start)]
        done = subprocess.run(
            ["sh", "-c", command + " -s"], capture_output=True, text=True, timeout=20, check=True
        )
        assert json.loads(done.stdout)["accepted"] == 1
        assert counts(dev.settled()) == (1, 1, 0, 0, 0)


def test_what_it_prints_names_every_place_a_newcomer_needs(dev: Dev) -> None:
    with dev.running() as process:
        printed = process.output()
        for wanted in ("/publish", "/docs", "/stats", str(dev.data), "kept"):
            assert wanted in printed
        process.terminate()
        assert "in flight" in process.output()


def test_ephemeral_leaves_nothing_behind(dev: Dev) -> None:
    with dev.running("--ephemeral") as process:
        printed = process.output()
        directory = next(
            Path(word) for word in printed.split() if "aggregator-" in word and word.startswith("/")
        )
        assert directory.exists()
        assert process.terminate() == 0
    assert not directory.exists()
    assert not dev.data.exists()


def test_a_busy_port_is_named_with_the_way_out(dev: Dev, tmp_path: Path) -> None:
    with dev.running():
        arguments = ("dev", "--port", str(dev.port), "--data-dir", str(tmp_path / "other"))
        with aggregator("second", *arguments, log=tmp_path / "second.log") as second:
            assert second.wait(20) == 1
            assert f"port {dev.port}" in second.output()
            assert "--port" in second.output()


def test_a_data_directory_in_use_is_refused_with_the_owner_named(dev: Dev, tmp_path: Path) -> None:
    with dev.running() as process:
        arguments = ("dev", "--port", "0", "--data-dir", str(dev.data))
        with aggregator("second", *arguments, log=tmp_path / "second.log") as second:
            assert second.wait(20) == 1
            assert f"in use by process {process.pid}" in second.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_loses_nothing_that_was_acknowledged(dev: Dev, number: signal.Signals) -> None:
    acknowledged = 0
    failures: list[str] = []

    def publish(process: Callable[[], int | None]) -> None:
        nonlocal acknowledged
        with httpx.Client(timeout=10.0) as client:
            while process() is None:
                batch = [event(n) for n in range(acknowledged, acknowledged + 50)]
                try:
                    answer = client.post(f"{dev.url}/publish", json=batch)
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    acknowledged += 50
                elif answer.status_code != 503:
                    failures.append(answer.text)

    with dev.running() as process:
        publisher = threading.Thread(target=publish, args=(lambda: process.returncode,))
        publisher.start()
        wait_until(lambda: acknowledged >= 500, 30.0, "500 events", process)
        process.signal(number)
        assert process.wait(25.0) == 0
        publisher.join()
    with dev.running():
        stats = dev.settled()
    assert not failures
    assert stats["unique_processed"] >= acknowledged
    assert stats["received"] == stats["unique_processed"] + stats["duplicate_dropped"]


def test_a_store_that_cannot_be_opened_yet_is_waited_for_while_events_are_taken(dev: Dev) -> None:
    dev.data.mkdir()
    with contextlib.closing(sqlite3.connect(dev.data / "store.db")) as other, dev.running():
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE somebody_elses (n INTEGER)")
        assert httpx.post(f"{dev.url}/publish", json=event(1)).status_code == 200
        wait_until(
            lambda: "waiting for a dependency" in dev.log.read_text(), 30, "the store to be waited for"
        )
        refused = httpx.get(f"{dev.url}/stats", timeout=20)
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
        assert httpx.post(f"{dev.url}/publish", json=event(2)).status_code == 200

        other.rollback()

        def both_stored() -> bool:
            answer = httpx.get(f"{dev.url}/stats", timeout=20)
            return answer.status_code == 200 and answer.json()["unique_processed"] == 2

        wait_until(both_stored, 40, "both events stored")
