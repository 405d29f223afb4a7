"""Getting in: with keys, with wrong ones, without any, and from a web page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import (
    REPOSITORY,
    Process,
    aggregator,
    clean_environment,
    free_port,
    wait_ready,
    wait_until,
)

EVENT = {
    "topic": "shop.orders",
    "event_id": "1",
    "timestamp": "2026-01-01T00:00:00Z",
    "source": "test",
    "payload": {"card": "4111-1111"},
}
BROKEN = b"not-an-event-4111"


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=REPOSITORY,
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Guarded:
    """`aggregator dev` with a keyring, and a key of every kind."""

    def __init__(self, directory: Path) -> None:
        self.keyring = directory / "keys.json"
        self.log = directory / "dev.log"
        self.data = directory / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.secrets: list[str] = []
        self.ingest = self.key("shop", "ingest", "--topic", "shop.*")
        self.viewer = self.key("Vera", "viewer")
        self.reader = self.key("Rita", "viewer", "--payloads")
        self.operator = self.key("Otto", "operator")

    def key(self, name: str, role: str, *options: str) -> str:
        done = command("keys", "create", name, "--role", role, *options, "--path", str(self.keyring))
        assert done.returncode == 0, done.stderr
        secret = done.stdout.strip()
        self.secrets.append(secret)
        return secret

    def revoke(self, secret: str) -> None:
        done = command("keys", "revoke", secret.split("_")[1], "--path", str(self.keyring))
        assert done.returncode == 0, done.stderr

    def ask(self, method: str, path: str, key: str | None = None, **request: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = httpx.request(method, f"{self.url}{path}", headers=headers, timeout=20, **request)
        assert not any(secret in answer.text for secret in self.secrets)
        return answer

    def publish(self, event: Any, key: str | None) -> httpx.Response:
        return self.ask("POST", "/publish", key, json=event)

    def settled(self) -> None:
        wait_until(
            lambda: self.ask("GET", "/stats", self.viewer).json()["queue_depth"] == 0, 20, "all stored"
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    system = Guarded(tmp_path_factory.mktemp("guarded"))
    started = aggregator(
        "dev",
        *("dev", "--host", "0.0.0.0", "--port", str(system.port), "--data-dir", str(system.data)),
        log=system.log,
        environment={
            "AGGREGATOR_KEYS__PATH": str(system.keyring),
            "AGGREGATOR_KEYS__REREAD_SECONDS": "0.05",
            "AGGREGATOR_LOG__LEVEL": "debug",
        },
    )
    with started as process:
        wait_ready(process, system.url)
        assert system.publish(EVENT, system.ingest).status_code == 200
        system.settled()
        yield system
        process.terminate()


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"]
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_nothing_but_the_probes_and_the_description_is_open(guarded: Guarded) -> None:
    paths = guarded.ask("GET", "/openapi.json").json()["paths"]
    unguarded = {"/livez", "/healthz", "/readyz", "/metrics", "/docs"}
    assert {path for path in paths if path in unguarded} < unguarded
    for path in unguarded:
        assert guarded.ask("GET", path).status_code == 200
    guarded_routes = [
        (method, path) for path, methods in paths.items() if path not in unguarded for method in methods
    ]
    assert len(guarded_routes) > 15
    others = [("GET", "/no/such/path"), ("GET", "//stats"), ("GET", "/stats/")]
    for method, template in [*guarded_routes, *others]:
        path = template.replace("{", "").replace("}", "")
        for key, code in ((None, "key_missing"), ("agg_000000000000_x", "key_not_valid")):
            assert_refused(guarded.ask(method.upper(), path, key), 401, code)


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Basic {}", "{}", "Bearer {} extra", "Bearer {}x", "Bearer x{}"]
)
def test_a_key_shown_the_wrong_way_opens_nothing(guarded: Guarded, authorization: str) -> None:
    headers = {"authorization": authorization.replace("{}", guarded.ingest)}
    answer = httpx.post(f"{guarded.url}/publish", json=EVENT, headers=headers)
    assert_refused(answer, 401, "key_not_valid")
    headers = {"authorization": authorization.replace("{}", guarded.operator)}
    assert_refused(httpx.get(f"{guarded.url}/stats", headers=headers), 401, "key_not_valid")


def test_an_ingest_key_publishes_to_its_topics_only(guarded: Guarded) -> None:
    elsewhere = {**EVENT, "topic": "payroll", "event_id": "2"}
    assert_refused(guarded.publish(elsewhere, guarded.ingest), 403, "topic_not_allowed")
    assert_refused(guarded.publish([elsewhere, elsewhere], guarded.ingest), 403, "topic_not_allowed")

    mixed = guarded.publish([EVENT, elsewhere], guarded.ingest)
    assert mixed.status_code == 207
    assert mixed.json()["accepted"] == 1
    assert [(one["index"], one["code"]) for one in mixed.json()["errors"]] == [(1, "topic_not_allowed")]

    guarded.settled()
    assert guarded.ask("GET", "/stats", guarded.viewer).json()["topics"] == ["shop.orders"]


def test_a_role_does_what_it_is_for_and_no_more(guarded: Guarded) -> None:
    for path in ("/stats", "/events", "/audit", "/dead-letters"):
        assert_refused(guarded.ask("GET", path, guarded.ingest), 403, "role_not_allowed")
        assert guarded.ask("GET", path, guarded.viewer).status_code == 200
        assert guarded.ask("GET", path, guarded.operator).status_code == 200
    for key in (guarded.viewer, guarded.reader, guarded.operator):
        assert_refused(guarded.publish(EVENT, key), 403, "role_not_allowed")
    for path in ("/dead-letters/1/discard", "/dead-letters/1/replay", "/dead-letters/operations"):
        for key in (guarded.viewer, guarded.reader):
            assert_refused(guarded.ask("POST", path, key, json={}), 403, "role_not_allowed")
        assert guarded.ask("POST", path, guarded.operator, json={}).status_code in {404, 422}


def test_payloads_are_for_those_whose_key_says_so(guarded: Guarded) -> None:
    conflicting = {**EVENT, "event_id": "9", "payload": {"card": "4111-9999"}}
    for event in ({**EVENT, "event_id": "9"}, conflicting):
        assert guarded.publish(event, guarded.ingest).status_code == 200
        guarded.settled()
    letters = guarded.ask("GET", "/dead-letters", guarded.viewer).json()["dead_letters"]
    paths = (
        "/events",
        "/events/export",
        "/events/shop.orders/1",
        "/events/shop.orders/9",
        f"/dead-letters/{letters[0]['id']}",
    )
    for path in paths:
        for key in (guarded.viewer, guarded.operator):
            shown = guarded.ask("GET", path, key)
            assert shown.status_code == 200
            assert "4111" not in shown.text
            assert "shop.orders" in shown.text
        assert "4111" in guarded.ask("GET", path, guarded.reader).text
    assert guarded.ask("GET", paths[-1], guarded.viewer).json()["redacted"]
    assert not guarded.ask("GET", paths[-1], guarded.reader).json()["redacted"]


def test_the_audit_log_names_the_key_and_not_what_the_client_claims(guarded: Guarded) -> None:
    first = {**EVENT, "event_id": "audited"}
    for event in (first, {**first, "payload": {}}):
        assert guarded.publish(event, guarded.ingest).status_code == 200
        guarded.settled()
    letter = guarded.ask("GET", "/dead-letters?status=pending", guarded.viewer).json()["dead_letters"][0]

    done = command(
        "dead-letters",
        "discard",
        str(letter["id"]),
        "--url",
        guarded.url,
        AGGREGATOR_CLIENT__KEY=guarded.operator,
    )

    assert done.returncode == 0, done.stderr
    audit = guarded.ask("GET", f"/audit?dead_letter_id={letter['id']}", guarded.viewer).json()["entries"]
    assert [entry["actor"] for entry in audit] == ["Otto"]


def test_keys_come_and_go_while_it_runs(guarded: Guarded) -> None:
    late = guarded.key("late", "ingest")
    wait_until(lambda: guarded.publish(EVENT, late).status_code == 200, 5, "the new key is taken")

    guarded.revoke(late)

    wait_until(lambda: guarded.publish(EVENT, late).status_code == 401, 5, "the revoked key is refused")
    answer = guarded.publish(EVENT, late)
    assert_refused(answer, 401, "key_not_valid")
    assert "was revoked" in answer.json()["detail"]
    listed = command("keys", "list", "--json", AGGREGATOR_KEYS__PATH=str(guarded.keyring))
    assert {one["id"]: one["revoked_at"] is not None for one in json.loads(listed.stdout)}[late.split("_")[1]]


@pytest.mark.parametrize("limit", [("--events-per-second", "50"), ("--bytes-per-second", "8000")])
def test_over_its_quota_a_key_is_told_when_to_come_back(guarded: Guarded, limit: tuple[str, str]) -> None:
    slow = guarded.key("slow", "ingest", *limit)
    events = [{**EVENT, "event_id": f"quota-{number}"} for number in range(100)]
    wait_until(lambda: guarded.publish(events, slow).status_code == 200, 5, "the new key is taken")

    refused = guarded.publish(EVENT, slow)

    assert_refused(refused, 429, "quota_exceeded")
    assert refused.json()["retryable"]
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    # `aggregator send` waits as it is told, and gets everything through.
    lines = "".join(json.dumps({**EVENT, "event_id": f"sent-{number}"}) + "\n" for number in range(60))
    done = subprocess.run(
        [sys.executable, "-m", "cli", "send", "-", "--url", guarded.url, "--batch-size", "20", "--json"],
        cwd=REPOSITORY,
        env={**clean_environment(), "AGGREGATOR_CLIENT__KEY": slow},
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["accepted"] == 60
    assert summary["retries"] > 0


def test_no_key_is_ever_in_a_log(guarded: Guarded) -> None:
    guarded.publish(EVENT, guarded.ingest)
    guarded.ask("GET", f"/stats?key={guarded.operator}", guarded.operator)
    written = guarded.log.read_text()
    assert "/stats" in written
    for secret in guarded.secrets:
        assert secret not in written
        assert secret.split("_", 2)[2] not in written
        assert secret not in guarded.keyring.read_text()
    assert f'"key_id":"{guarded.ingest.split("_")[1]}"' in written


@pytest.mark.parametrize("role", ["dev", "gateway", "admin"])
def test_without_keys_no_process_listens_where_others_can_reach_it(tmp_path: Path, role: str) -> None:
    group = {"gateway": "INGEST", "admin": "ADMIN"}.get(role)
    options = ["--host", "0.0.0.0", "--data-dir", str(tmp_path / "data")] if role == "dev" else []
    environment = {
        "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "AGGREGATOR_DATABASE__URL": "postgresql://u:p@127.0.0.1:9/x",
        **({f"AGGREGATOR_{group}__HOST": "0.0.0.0"} if group else {}),
    }

    done = command(role, *options, **environment)

    assert done.returncode == 1
    assert "there are no keys" in done.stderr
    assert "aggregator keys create" in done.stderr
    missing = command(role, *options, **environment, AGGREGATOR_KEYS__PATH=str(tmp_path / "none"))
    assert missing.returncode == 1
    assert "There is no keyring" in missing.stderr


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Process]]:
    directory, port = tmp_path_factory.mktemp("keyless"), free_port()
    arguments = ("dev", "--port", str(port), "--data-dir", str(directory / "data"))
    with aggregator("dev", *arguments, log=directory / "dev.log") as process:
        wait_ready(process, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}", process


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example"},
        {"host": "rebound.example:8080", "origin": "http://rebound.example:8080"},
        {"origin": "http://page.example"},
        {"origin": "null"},
    ],
)
def test_without_keys_a_web_page_of_elsewhere_neither_reads_nor_writes(
    keyless: tuple[str, Process], headers: dict[str, str]
) -> None:
    url, _ = keyless
    for method, path in (("GET", "/events"), ("GET", "/stats"), ("POST", "/publish"), ("GET", "/readyz")):
        answer = httpx.request(method, url + path, headers=headers, json=EVENT if method == "POST" else None)
        assert_refused(answer, 403, "host_not_allowed")
    assert httpx.get(f"{url}/stats").json()["received"] == 0


def test_without_keys_programs_of_this_machine_get_in(keyless: tuple[str, Process]) -> None:
    url, _ = keyless
    for host in ("localhost", "127.0.0.1:1", "[::1]:8080"):
        assert httpx.get(f"{url}/stats", headers={"host": host}).status_code == 200
    assert httpx.get(f"{url}/stats", headers={"origin": url}).status_code == 200


def test_what_a_key_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    for options, sentence in (
        (["--role", "viewer", "--topic", "x"], "for ingest keys only"),
        (["--role", "ingest", "--payloads"], "reads nothing"),
        (["--role", "root"], "is not one of"),
    ):
        done = command("keys", "create", "x", *options, "--path", path)
        assert done.returncode == 2
        assert sentence in " ".join(done.stderr.replace("│", " ").split())
    unknown = command("keys", "revoke", "nope", "--path", path)
    assert unknown.returncode == 1
    assert "has no key nope" in unknown.stderr
    nowhere = command("keys", "list")
    assert nowhere.returncode == 2
    assert "AGGREGATOR_KEYS__PATH" in nowhere.stderr
