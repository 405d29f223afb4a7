"""Hostile requests to the running product, in both modes: the exact answer, and the exact verdicts.

Every case has an event topic of its own, so that `GET /topics` tells what became of it and of nothing else.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from events.event import MAX_EVENT_BYTES
from tests.support.deployment import Deployment
from tests.support.hostile import REFUSED, TOPIC, accepted, encode, event
from tests.support.kafka import kafka_settings
from tests.support.postgres import create_database, drop_database
from tests.support.processes import aggregator, free_port, wait_ready, wait_until

pytestmark = pytest.mark.timeout(180)

MIB = 1024 * 1024
JSON = {"content-type": "application/json"}
READ_TIMEOUT = 2.0


class Verdicts(NamedTuple):
    """What `GET /topics` has to say in the end."""

    received: int = 0
    unique_processed: int = 0
    duplicate_dropped: int = 0
    conflicting: int = 0
    dead_lettered: int = 0


NONE = Verdicts()


@dataclass(frozen=True)
class Case:
    """Requests that are sent one after the other, and what has to become of them.

    Attributes:
        bodies: made for the case's topic.
        statuses: one for each body.
        code: of the problem document of the last answer; None if it is none.
    """

    bodies: Callable[[str], list[bytes]]
    statuses: list[int]
    code: str | None = None
    verdicts: Verdicts = NONE
    headers: dict[str, str] = field(default_factory=dict)


def one(raw: bytes) -> Callable[[str], list[bytes]]:
    """A single request, with the case's topic where its bytes name the usual one."""
    return lambda topic: [raw.replace(TOPIC.encode(), topic.encode())]


def events(topic: str, count: int, **changes: Any) -> list[dict[str, Any]]:
    return [event(topic=topic, event_id=f"{n}", **changes) for n in range(count)]


def taken(raw: Callable[[str], bytes]) -> Case:
    return Case(lambda topic: [raw(topic)], [200], None, Verdicts(1, 1))


ODD: dict[str, Case] = {name: taken(lambda topic, n=name: accepted(topic)[n]) for name in accepted(TOPIC)}  # type: ignore[misc]

CASES: dict[str, Case] = {
    **{name: Case(one(r.raw), [r.status], r.code) for name, r in REFUSED.items()},
    **ODD,
    "10,001 events": Case(lambda t: [encode(events(t, 10_001))], [413], "too_many_events"),
    "10,000 events": Case(lambda t: [encode(events(t, 10_000))], [200], None, Verdicts(10_000, 10_000)),
    "more than 10 MiB": Case(lambda t: [b" " * (10 * MIB) + encode(event(topic=t))], [413], "body_too_large"),
    "text/plain": Case(
        lambda t: [encode(event(topic=t))],
        [415],
        "unsupported_content_type",
        headers={"content-type": "text/plain"},
    ),
    "another charset": Case(
        lambda t: [encode(event(topic=t))],
        [415],
        "unsupported_content_type",
        headers={"content-type": "application/json; charset=utf-16"},
    ),
    "brotli": Case(
        lambda t: [encode(event(topic=t))],
        [415],
        "unsupported_content_encoding",
        headers={"content-encoding": "br"},
    ),
    "gzip that is none": Case(
        lambda t: [encode(event(topic=t))], [400], "invalid_encoding", headers={"content-encoding": "gzip"}
    ),
    "gzip bomb": Case(
        lambda t: [gzip.compress(b" " * (200 * MIB), 9)],
        [413],
        "body_too_large",
        headers={"content-encoding": "gzip"},
    ),
    "gzip": Case(
        lambda t: [gzip.compress(encode(event(topic=t)))],
        [200],
        None,
        Verdicts(1, 1),
        {"content-encoding": "gzip"},
    ),
    "same id, different payload": Case(
        lambda t: [encode(event(topic=t, payload={"total": n})) for n in (1, 2)],
        [200, 200],
        None,
        Verdicts(received=2, unique_processed=1, conflicting=1),
    ),
    "same id, same content in another spelling": Case(
        lambda t: [
            encode(event(topic=t, payload={"a": 1, "b": 2})),
            encode(event(topic=t, payload={"b": 2, "a": 1}, timestamp="2026-01-31T11:00:00Z")),
        ],
        [200, 200],
        None,
        Verdicts(received=2, unique_processed=1, duplicate_dropped=1),
    ),
    "conflict within one batch": Case(
        lambda t: [encode([event(topic=t, payload={"n": n}) for n in (1, 2, 1)])],
        [200],
        None,
        Verdicts(received=3, unique_processed=1, duplicate_dropped=1, conflicting=1),
    ),
    "100 copies in one batch": Case(
        lambda t: [encode([event(topic=t)] * 100)],
        [200],
        None,
        Verdicts(received=100, unique_processed=1, duplicate_dropped=99),
    ),
    "mixed batch": Case(
        lambda t: [
            encode(
                [
                    *events(t, 3),
                    event(topic=t, event_id=""),
                    event(topic=t, event_id=5),
                    event(topic=t, payload={"a": "x" * MAX_EVENT_BYTES}),
                ]
            )
        ],
        [207],
        None,
        Verdicts(received=3, unique_processed=3),
    ),
    "batch that is not UTF-8 in one event": Case(
        lambda t: [b"[" + encode(event(topic=t)) + b',{"topic": "\xff"}]'], [400], "invalid_encoding"
    ),
}


def topic_of(name: str) -> str:
    """An event topic for the case; plain, so that its bytes can stand in any encoding."""
    return "case." + re.sub(r"[^a-z0-9]+", "-", name.lower())


class Product:
    """A running product."""

    def __init__(self, gateway_url: str, admin_url: str) -> None:
        self.gateway = httpx.Client(base_url=gateway_url, timeout=30)
        self.admin = httpx.Client(base_url=admin_url, timeout=30)
        self.port = int(gateway_url.rpartition(":")[2])
        self.answers: dict[str, list[httpx.Response]] = {}
        self.verdicts: dict[str, Verdicts] = {}

    def close(self) -> None:
        self.gateway.close()
        self.admin.close()

    def play(self) -> None:
        """Send everything, and read the verdicts when all of it has one."""
        for name, case in CASES.items():
            self.answers[name] = [
                self.gateway.post("/publish", content=body, headers=JSON | case.headers)
                for body in case.bodies(topic_of(name))
            ]
        stats = wait_until(self._settled, 60, "every record to get its verdict")
        assert stats["dead_lettered"] == 0
        for row in self.admin.get("/topics?limit=1000").json()["topics"]:
            self.verdicts[row["topic"]] = Verdicts(*(row[name] for name in Verdicts._fields))

    def _settled(self) -> dict[str, Any] | None:
        stats: dict[str, Any] = self.admin.get("/stats").json()
        expected = sum(case.verdicts.received for case in CASES.values())
        return stats if stats["queue_depth"] == 0 and stats["received"] >= expected else None

    def requests(self) -> dict[str, int]:
        """What the gateway says of its requests in flight."""
        found: dict[str, int] = self.gateway.get("/readyz?verbose").json()["dependencies"]["requests"]
        return found


@pytest.fixture(
    scope="module",
    params=["embedded", pytest.param("production", marks=[pytest.mark.kafka, pytest.mark.postgres])],
)
def product(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The embedded process, and the production roles; all cases have been sent to each."""
    directory = tmp_path_factory.mktemp("hostile-requests")
    with ExitStack() as stack:
        start = embedded if request.param == "embedded" else production
        product = start(stack, request, directory)
        stack.enter_context(closing(product))
        product.play()
        yield product


def embedded(stack: ExitStack, _: pytest.FixtureRequest, directory: Path) -> Product:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ("dev", "--port", str(port), "--data-dir", str(directory / "data"))
    settings = {"AGGREGATOR_INGEST__READ_TIMEOUT_SECONDS": str(READ_TIMEOUT)}
    wait_ready(
        stack.enter_context(aggregator("dev", *command, log=directory / "dev.log", environment=settings)), url
    )
    return Product(url, url)


def production(stack: ExitStack, request: pytest.FixtureRequest, directory: Path) -> Product:
    server = request.getfixturevalue("postgres_server")
    database = "hostile_requests"
    url = create_database(server.url, database, request.getfixturevalue("postgres_template"))
    stack.callback(drop_database, server.url, database)
    bootstrap = request.getfixturevalue("kafka_bootstrap")
    deployment = Deployment(
        directory,
        bootstrap,
        kafka_settings(bootstrap).topic,
        url,
        AGGREGATOR_INGEST__READ_TIMEOUT_SECONDS=str(READ_TIMEOUT),
    )
    deployment.run("topics", "create", "--partitions", "4", "--replication-factor", "1")
    for role in (deployment.gateway, deployment.worker, deployment.admin):
        stack.enter_context(role())
    return Product(deployment.gateway_url, deployment.admin_url)


@pytest.mark.parametrize("name", CASES)
def test_answer_and_verdicts_are_exact(name: str, product: Product) -> None:
    case, answers = CASES[name], product.answers[name]
    assert [answer.status_code for answer in answers] == case.statuses, answers[-1].text
    document = answers[-1].json()
    if case.code is None:
        assert answers[-1].headers["content-type"] == "application/json"
        assert document["queued"] == document["accepted"]
        assert sum(answer.json()["accepted"] for answer in answers) == case.verdicts.received
    else:
        assert answers[-1].headers["content-type"] == "application/problem+json"
        assert document["code"] == case.code
    assert product.verdicts.get(topic_of(name), NONE) == case.verdicts


def test_nothing_else_was_stored(product: Product) -> None:
    assert product.verdicts.keys() == {
        topic_of(name) for name, case in CASES.items() if case.verdicts.received
    }


@pytest.mark.parametrize("name", ODD)
def test_odd_event_is_shown_as_it_was_sent(name: str, product: Product) -> None:
    (shown,) = product.admin.get("/events", params={"topic": topic_of(name)}).json()["events"]
    sent = json.loads(accepted(topic_of(name))[name])
    assert (shown["event_id"], shown["source"], shown["payload"]) == (
        sent["event_id"],
        sent["source"],
        sent["payload"],
    )


def test_losing_side_of_a_conflict_is_a_dead_letter(product: Product) -> None:
    topic = topic_of("same id, different payload")
    (letter,) = product.admin.get("/dead-letters", params={"topic": topic}).json()["dead_letters"]
    assert letter["reason"] == "conflicting_duplicate"
    (stored,) = product.admin.get("/events", params={"topic": topic}).json()["events"]
    assert stored["payload"] == {"total": 1}


def test_errors_of_a_mixed_batch_name_their_events(product: Product) -> None:
    document = product.answers["mixed batch"][0].json()
    assert [(error["index"], error["code"]) for error in document["errors"]] == [
        (3, "schema"),
        (4, "schema"),
        (5, "too_large"),
    ]


def test_declared_length_over_the_limit_is_refused_unread(product: Product) -> None:
    answer = exchange(product, [f"content-length: {10 * MIB + 1}"], [])
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_chunked_body_over_the_limit_is_refused(product: Product) -> None:
    response = product.gateway.post("/publish", content=iter([b" " * MIB] * 11), headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_trickled_body_is_answered_408_and_the_connection_closed(product: Product) -> None:
    answer = exchange(product, ["content-length: 1000"], [b"{"])
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "headers",
    [
        ["content-length: 5", "content-length: 6"],
        ["content-length: -1"],
        ["content-length: 5", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked, identity"],
        ["header without colon"],
        ["x: " + "y" * 70_000],
    ],
)
def test_request_that_could_be_read_two_ways_is_refused_or_closed_and_stores_nothing(
    headers: list[str], product: Product
) -> None:
    answer = exchange(product, headers, [b"5\r\n[]   \r\n0\r\n\r\n"])
    assert not answer or answer.startswith((b"HTTP/1.1 4",)), answer[:200]


def test_client_that_leaves_mid_body_or_before_the_answer_leaves_nothing_behind(product: Product) -> None:
    body = encode([event(topic="left", event_id=str(n)) for n in range(2_000)])
    for sent in (body[:1], body[: len(body) // 2], body):
        for _ in range(10):
            with connected(product, [f"content-length: {len(body)}"]) as connection:
                connection.sendall(sent)
                if sent is not body[:1]:
                    # A reset instead of an orderly end.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def idle() -> bool:
        requests = product.requests()
        return (requests["in_flight"], requests["in_flight_bytes"]) == (0, 0)

    wait_until(idle, 20, "no request and no byte in flight")


def connected(product: Product, headers: list[str]) -> socket.socket:
    """A connection that has sent the head of a publish request."""
    connection = socket.create_connection(("127.0.0.1", product.port), timeout=20)
    lines = ["POST /publish HTTP/1.1", "host: localhost", "content-type: application/json", *headers]
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    return connection


def exchange(product: Product, headers: list[str], pieces: list[bytes]) -> bytes:
    """Send a head and pieces of a body; the answer up to the end of the stream or of its document."""
    with connected(product, headers) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while not (answer.rstrip().endswith(b"}") and b"\r\n\r\n" in answer):
                received = connection.recv(65_536)
                if not received:
                    break
                answer += received
        except ConnectionError:
            pass
        return answer
