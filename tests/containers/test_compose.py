"""The whole deployment in containers, from nothing: healthy, exact under a crash, nothing lost by an end."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.containers import stand_ins
from tests.containers.deployment import ROLES, ComposeProject
from tests.containers.engine import Engine
from tests.support.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

EVENTS, COPIES = 20_000, 4_000
ONCE = ("secrets", "migrate", "topics")
SECRETS = ("database/password", "database/url", "clients/ingest", "clients/operator")


def health(project: ComposeProject, *services: str) -> list[str]:
    return [one["State"]["Health"]["Status"] for one in project.containers(*services)]


def exactly(before: dict[str, int], *, received: int, stored: int, duplicates: int) -> dict[str, int]:
    """The counts there have to be after so many more records."""
    return {
        **before,
        "received": before["received"] + received,
        "unique_processed": before["unique_processed"] + stored,
        "duplicate_dropped": before["duplicate_dropped"] + duplicates,
    }


def agrees(project: ComposeProject) -> bool:
    """Whether log and database agree, record by record."""
    return "Everything agrees." in project.cli("verify")


def test_compose_accepts_the_file_with_either_broker(new_project: ComposeProject) -> None:
    for files in ("deploy/compose/apache-kafka.env", "/dev/null"):
        services = new_project.run("--profile=*", "config", "--services", COMPOSE_ENV_FILES=files).split()
        assert {*ROLES, *ONCE, "broker", "postgres", "loadtest", "prometheus", "grafana", "cli"} == set(
            services
        )


def test_one_command_makes_everything_healthy(project: ComposeProject) -> None:
    assert set(health(project, *ROLES, "broker", "postgres")) == {"healthy"}
    assert [one["State"]["ExitCode"] for one in project.containers(*ONCE)] == [0, 0, 0]


def test_containers_run_with_what_the_file_takes_from_them(project: ComposeProject) -> None:
    for container in project.containers(*ROLES):
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert 0 < host["Memory"] <= 1 << 30
        published = [port for ports in host["PortBindings"].values() for port in ports]
        assert {port["HostIp"] for port in published} <= {"127.0.0.1"}


def test_no_secret_is_in_an_environment_a_command_or_a_log(
    project: ComposeProject, operator_key: str
) -> None:
    secrets = project.secrets(*SECRETS)
    assert operator_key in secrets
    told = [str(one["Config"]) + str(one["Path"]) + str(one["Args"]) for one in project.containers()]
    told.append(project.logs())
    for place, secret in zip(SECRETS, secrets, strict=True):
        assert len(secret) > 30
        assert not any(secret in one for one in told), place


def test_a_key_made_meanwhile_is_taken_and_one_is_needed(project: ComposeProject) -> None:
    event = {
        "topic": "keys",
        "event_id": "1",
        "timestamp": "2026-01-31T12:00:00Z",
        "source": "test",
        "payload": {},
    }
    url = f"{project.gateway_url}/publish"
    assert httpx.post(url, json=event).status_code == 401
    key = project.cli("keys", "create", "shop", "--role", "ingest", "--topic", "keys").strip()

    def taken() -> bool:
        return httpx.post(url, json=event, headers={"authorization": f"Bearer {key}"}).status_code == 200

    wait_until(taken, 10, "the new key to be taken")
    other = httpx.post(url, json={**event, "topic": "other"}, headers={"authorization": f"Bearer {key}"})
    assert other.status_code == 403


def test_the_load_test_is_exact(project: ComposeProject, operator_key: str) -> None:
    before = project.settled(operator_key, 0)
    assert f"{EVENTS + COPIES:,}" in project.load_test()
    after = project.settled(operator_key, before["received"] + EVENTS + COPIES)
    assert after == exactly(before, received=EVENTS + COPIES, stored=EVENTS, duplicates=COPIES)
    assert agrees(project)


def test_nothing_is_lost_or_counted_twice_when_a_worker_is_killed_under_load(
    project: ComposeProject, operator_key: str
) -> None:
    project.up("--scale", "worker=3")
    assert health(project, "worker") == ["healthy"] * 3
    wait_until(lambda: project.stats(operator_key)["workers"] == 3, 60, "three workers at work")
    before = project.settled(operator_key, 0)
    outcome: list[str] = []
    sending = threading.Thread(target=lambda: outcome.append(project.load_test()))
    sending.start()
    try:
        wait_until(
            lambda: project.stats(operator_key)["received"] > before["received"], 60, "the first verdicts"
        )
        killed = project.kill_one("worker")
        at_the_time = project.stats(operator_key)["received"] - before["received"]
    finally:
        sending.join()
    assert 0 < at_the_time < EVENTS + COPIES, "it was not under load"
    assert outcome, "the load test failed"
    after = project.settled(operator_key, before["received"] + EVENTS + COPIES)
    assert after == exactly(before, received=EVENTS + COPIES, stored=EVENTS, duplicates=COPIES)
    assert agrees(project)
    project.up("--scale", "worker=3")
    assert health(project, "worker") == ["healthy"] * 3
    assert killed in {container["Id"] for container in project.containers("worker")}, (
        "the same one, started anew"
    )


def test_the_end_and_a_new_start_lose_nothing(project: ComposeProject, operator_key: str) -> None:
    """Acknowledged events wait in the log: for a worker, and through the end of every container."""
    before = project.settled(operator_key, 0)
    project.run("stop", "worker")
    project.load_test()
    assert project.stats(operator_key)["queue_depth"] == EVENTS + COPIES
    project.run("stop", "gateway", "admin")
    # A process that drained ends with 0; one that was killed for taking too long, with 137.
    assert {container["State"]["ExitCode"] for container in project.containers(*ROLES)} == {0}
    project.run("down")
    assert project.containers() == []
    project.up()
    after = project.settled(operator_key, before["received"] + EVENTS + COPIES)
    assert after == exactly(before, received=EVENTS + COPIES, stored=EVENTS, duplicates=COPIES)
    assert agrees(project)


def test_prometheus_finds_every_process_and_knows_the_alerts(
    engine: Engine, project: ComposeProject, defaults: bool, revision: str
) -> None:
    if not defaults:
        project.environment["PROMETHEUS_IMAGE"] = stand_ins.make_prometheus(engine)
    project.up("--scale", "worker=2")
    project.run("--profile=observability", "up", "--wait", "--no-recreate", "prometheus")

    def query(expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{project.prometheus_url}/api/v1/query", params={"query": expression}).json()
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def seen() -> dict[str, int] | None:
        jobs = [one["metric"]["job"] for one in query("up == 1")]
        found = {role: jobs.count(f"aggregator-{role}") for role in ROLES}
        return found if found == {"gateway": 1, "worker": 2, "admin": 1} else None

    wait_until(seen, 90, "Prometheus to scrape every process")
    built = {one["metric"]["revision"] for one in query("aggregator_build_info")}
    assert built == {revision}
    rules = httpx.get(f"{project.prometheus_url}/api/v1/rules").json()["data"]["groups"]
    assert sum(len(group["rules"]) for group in rules) == 5
