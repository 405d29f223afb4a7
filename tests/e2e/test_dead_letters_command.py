"""`aggregator dead-letters` as processes: against `aggregator dev`, and against the production roles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer as ConfluentProducer

from tests.support.deployment import Deployment
from tests.support.processes import (
    REPOSITORY,
    aggregator,
    clean_environment,
    free_port,
    wait_ready,
    wait_until,
)


class Command:
    """Runs `aggregator dead-letters …` against one address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, *arguments: str, status: int = 0, stdin: bytes | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "dead-letters", *arguments, "--url", self.url],
            cwd=REPOSITORY,
            env=clean_environment(),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=60,
        )
        printed = (done.stdout + done.stderr).decode()
        assert done.returncode == status, printed
        assert "Traceback" not in printed
        return done.stdout.decode() if status == 0 else printed

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.run(*arguments, "--json", **options))


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "topic": "t",
        "event_id": str(number),
        "timestamp": "2026-01-01T00:00:00Z",
        "source": "s",
        "payload": {"n": number},
        **changes,
    }


def settled(url: str, received: int) -> dict[str, int]:
    def done() -> dict[str, Any] | None:
        stats: dict[str, Any] = httpx.get(f"{url}/stats", timeout=20).raise_for_status().json()
        return stats if stats["received"] >= received and stats["queue_depth"] == 0 else None

    stats = wait_until(done, 60, f"{received} verdicts")
    names = ("received", "unique_processed", "duplicate_dropped", "conflicting", "dead_lettered")
    return {name: stats[name] for name in names}


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Command]:
    """The command for an embedded instance in which five events are in conflict."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("dev", "--port", str(port), "--data-dir", str(tmp_path / "data"))
    with aggregator("dev", *command, log=tmp_path / "dev.log") as process:
        wait_ready(process, url)
        events = [event(n) for n in range(5)] + [event(n, source="other") for n in range(5)]
        httpx.post(f"{url}/publish", json=events).raise_for_status()
        settled(url, 10)
        yield Command(url)
        assert process.terminate() == 0


def test_conflicts_are_listed_grouped_shown_replayed_and_discarded(dev: Command, tmp_path: Path) -> None:
    listed = dev.json("list", "--reason", "conflicting_duplicate")["dead_letters"]
    ids = sorted(one["id"] for one in listed)
    assert len(ids) == 5
    assert "conflicting_duplicate" in dev.run("list", "--limit", "2")
    (group,) = dev.json("groups")
    assert (group["count"], group["statuses"]) == (5, {"pending": 5})
    assert '/source (changed): stored "s", rejected "other"' in dev.run("show", str(ids[0]))

    assert "is replayed" in dev.run("replay", str(ids[0]))
    assert settled(dev.url, 11)["conflicting"] == 6
    refused = dev.run("replay", str(ids[0]), status=1)
    assert "was replayed before" in refused

    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(event(100)))
    assert "is replayed" in dev.run("replay", str(ids[1]), "--event", str(edited))
    assert settled(dev.url, 12)["unique_processed"] == 6
    assert "invalid" in dev.run("replay", str(ids[2]), "--event", "-", status=1, stdin=b"{}")

    assert "Nothing was changed. 4 would be discarded" in dev.run("discard", "--all", "--dry-run")
    done = dev.json("discard", "--all", "--limit", "3", "--topic", "t")
    assert (done["done"], done["status"]) == (3, "completed")
    replayed = dev.run("replay", "--all")
    assert "1 replayed." in replayed
    assert settled(dev.url, 13) == {
        "received": 13,
        "unique_processed": 6,
        "duplicate_dropped": 0,
        "conflicting": 7,
        "dead_lettered": 0,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay",),
        ("replay", "1", "--all"),
        ("replay", "1", "--limit", "3"),
        ("discard", "1", "--dry-run"),
        ("replay", "--all", "--event", "x.json"),
        ("show", "0"),
        ("replay", "1", "--event", "does-not-exist.json"),
    ],
)
def test_contradictory_arguments_are_refused_before_anything_is_asked(arguments: tuple[str, ...]) -> None:
    Command("http://127.0.0.1:1").run(*arguments, status=2)


def test_an_address_that_is_not_an_admin_api_is_said_in_a_sentence(dev: Command) -> None:
    printed = Command("http://127.0.0.1:1").run("list", status=1)
    assert "does not answer" in printed
    assert "8080" in printed
    assert "must be one of" in dev.run("list", "--reason", "odd", status=1)
    assert "no dead letter" in dev.run("show", "4711", status=1)


@pytest.mark.kafka
@pytest.mark.postgres
def test_records_of_direct_producers_are_repaired_through_kafka(
    tmp_path: Path, kafka_bootstrap: str, kafka_topic: str, postgres_url: str
) -> None:
    deployment = Deployment(tmp_path, kafka_bootstrap, kafka_topic, postgres_url)
    producer = ConfluentProducer({"bootstrap.servers": kafka_bootstrap, "acks": "all"})
    for number in range(300):
        producer.produce(kafka_topic, b"{%d" % number, headers=[("origin", b"direct")])
    producer.produce(kafka_topic, None, key=b"tombstone")
    assert producer.flush(30) == 0
    with deployment.worker(), deployment.admin() as admin:
        assert settled(deployment.admin_url, 301)["dead_lettered"] == 301
        command = Command(deployment.admin_url)
        (tombstone,) = command.json("list", "--reason", "tombstone")["dead_letters"]
        assert "no value" in command.run("replay", str(tombstone["id"]), status=1)
        edited = json.dumps(event(7)).encode()
        command.run("replay", str(tombstone["id"]), "--event", "-", stdin=edited)
        done = command.json("replay", "--all", "--reason", "invalid_json", "--limit", "250")
        assert (done["done"], done["unknown"], done["failed"]) == (250, 0, 0)
        assert settled(deployment.admin_url, 552) == {
            "received": 552,
            "unique_processed": 1,
            "duplicate_dropped": 0,
            "conflicting": 0,
            "dead_lettered": 551,
        }
        assert admin.terminate() == 0
    query = (
        "SELECT count(*), count(DISTINCT c.parent_id) FROM dead_letters c JOIN dead_letters p"
        " ON p.id = c.parent_id WHERE p.status = 'replayed' AND c.record_value = p.record_value"
    )
    assert deployment.query(query) == [(250, 250)]
