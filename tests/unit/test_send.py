"""`aggregator send` against a real HTTP server that answers as it is told."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from cli.event_source import Duplicator
from cli.send import SendOptions, send, send_command
from cli.send_summary import SendSummary
from cli.synthetic import synthetic_events
from events.codec import decode_event
from tests.support.data import real_events
from tests.support.http_server import running_server
from tests.support.kafka_process import free_ports

Answer = Callable[[list[dict[str, Any]]], Response]
ROOT = Path(__file__).parents[2]


def accept(events: list[dict[str, Any]]) -> Response:
    return answer(200, {"accepted": len(events), "queued": len(events), "rejected": 0, "errors": None})


def answer(status: int, document: Any, **headers: str) -> Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(json.dumps(document), status, names, media_type="application/json")


def refusal(status: int, detail: str, **headers: str) -> Answer:
    return lambda events: answer(status, {"detail": detail, "code": "x"}, **headers)


class Gateway:
    """Answers each request with the next of `answers`, and from then on accepts. Keeps what it accepted."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[Answer] = []
        self.requests: list[list[dict[str, Any]]] = []
        self.times: list[float] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for request in self.requests for event in request]

    async def publish(self, request: Request) -> Response:
        events = json.loads(await request.body())
        self.times.append(time.monotonic())
        given = (self.answers.pop(0) if self.answers else accept)(events)
        if given.status_code in (200, 207):
            self.requests.append(events)
        return given


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    told = Gateway()
    app = FastAPI()
    app.add_api_route("/publish", told.publish, methods=["POST"])
    async with running_server(app) as server:
        told.url = server.url
        yield told


def event_lines(count: int) -> list[bytes]:
    return list(synthetic_events(count, Random(7)))


def written(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


async def sent(gateway: Gateway, **options: Any) -> SendSummary:
    return await send(SendOptions(url=gateway.url, **options), Console(file=io.StringIO()))


async def test_a_file_is_sent_whole_in_batches(gateway: Gateway, tmp_path: Path) -> None:
    lines = event_lines(1_234)
    summary = await sent(gateway, file=written(tmp_path / "events", lines), batch_size=100)
    assert sorted(map(_key, gateway.events)) == sorted(_key(json.loads(line)) for line in lines)
    assert max(map(len, gateway.requests)) == 100
    assert (summary.events_read, summary.unique, summary.duplicates) == (1_234, 1_234, 0)
    assert (summary.accepted, summary.requests, summary.retries) == (1_234, 13, 0)
    assert summary.complete


async def test_a_gzip_file_is_known_by_its_first_bytes_not_its_name(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "events.txt"
    path.write_bytes(gzip.compress(b"\n".join(event_lines(10))) + gzip.compress(b"\n" + event_lines(11)[10]))
    summary = await sent(gateway, file=path)
    assert summary.accepted == 11


@pytest.mark.parametrize(("count", "share"), [(1, 0.2), (3, 0.5), (1_234, 0.2), (999, 0.015), (700, 1.7)])
async def test_the_number_of_copies_is_exact(gateway: Gateway, count: int, share: float) -> None:
    summary = await sent(gateway, generate=count, duplicates=share, batch_size=90)
    seen = Counter(map(_key, gateway.events))
    assert len(seen) == summary.unique == count
    assert seen.total() - len(seen) == summary.duplicates == round(count * share)
    assert summary.accepted == summary.unique + summary.duplicates


async def test_the_real_events_arrive_with_a_fifth_of_copies(gateway: Gateway) -> None:
    summary = await sent(gateway, file=real_events(), duplicates=0.2)
    seen = Counter(map(_key, gateway.events))
    assert (summary.unique, summary.duplicates) == (33_903, 6_781)
    assert (len(seen), seen.total()) == (33_903, 40_684)


def test_copies_come_from_all_that_was_sent_before_in_bounded_memory() -> None:
    events = [b"%d" % n for n in range(20_000)]
    places: list[tuple[int, int]] = []
    read = 0
    for event, is_copy in Duplicator(0.2, Random(1)).mix(iter(events)):
        if is_copy:
            places.append((read, int(event)))
        else:
            read += 1
    assert len(places) == 4_000
    assert all(original < place + 500 for place, original in places)
    late = [original for place, original in places if place > 15_000]
    assert min(late) < 2_000, "only recent events were copied"


async def test_the_same_seed_sends_the_same(gateway: Gateway) -> None:
    runs = []
    for seed in (1, 1, 2):
        gateway.requests.clear()
        await sent(gateway, generate=300, duplicates=0.3, seed=seed, concurrency=1, batch_size=70)
        runs.append(gateway.events)
    assert runs[0] == runs[1]
    assert not {_key(event) for event in runs[0]} & {_key(event) for event in runs[2]}


async def test_copies_do_not_change_which_events_are_made_up(gateway: Gateway) -> None:
    await sent(gateway, generate=300, seed=5)
    without = {_key(event) for event in gateway.events}
    gateway.requests.clear()
    await sent(gateway, generate=300, seed=5, duplicates=0.4)
    assert {_key(event) for event in gateway.events} == without


def test_made_up_events_are_valid_distinct_and_varied() -> None:
    events = [decode_event(line) for line in synthetic_events(2_000, Random(3))]
    assert len({event.key for event in events}) == 2_000
    assert len({event.topic for event in events}) > 3
    assert len({event.source for event in events}) > 5
    assert {event.timestamp.year for event in events} == {2026}


@pytest.mark.parametrize("status", [429, 503])
async def test_a_gateway_that_asks_to_wait_is_obeyed(gateway: Gateway, status: int) -> None:
    gateway.answers = [refusal(status, "later", retry_after="1")]
    summary = await sent(gateway, generate=10)
    assert (summary.accepted, summary.requests, summary.retries) == (10, 2, 1)
    assert summary.complete
    assert gateway.times[1] - gateway.times[0] >= 1


async def test_a_gateway_that_stays_full_is_given_up_in_time_and_said(gateway: Gateway) -> None:
    gateway.answers = [refusal(503, "full")] * 1_000
    started = time.monotonic()
    summary = await sent(gateway, generate=10_000, retry_for=0.5)
    assert time.monotonic() - started < 10
    assert not summary.complete
    assert summary.accepted == summary.unique == 0
    assert summary.failure is not None
    assert "503" in summary.failure


async def test_what_was_accepted_before_giving_up_is_counted(gateway: Gateway) -> None:
    gateway.answers = [accept, accept, *[refusal(503, "full")] * 1_000]
    summary = await sent(gateway, generate=1_000, batch_size=100, concurrency=1, retry_for=0.2)
    assert (summary.accepted, summary.unique) == (200, 200)
    assert not summary.complete


async def test_nobody_listening_is_retried_and_then_said() -> None:
    nobody = Gateway()
    nobody.url = f"http://127.0.0.1:{free_ports(1)[0]}"
    summary = await sent(nobody, generate=10, retry_for=0.5)
    assert summary.retries > 0
    assert summary.failure is not None
    assert "cannot be reached" in summary.failure


async def test_rejected_events_are_counted_by_code_and_not_sent_again(gateway: Gateway) -> None:
    def mixed(events: list[dict[str, Any]]) -> Response:
        errors = [
            {"index": 0, "event_id": None, "code": "schema", "message": "`source` is missing."},
            {"index": 1, "event_id": "e", "code": "too_large", "message": "Too large."},
            {"index": 2, "event_id": "f", "code": "schema", "message": "`topic` is missing."},
        ]
        accepted = len(events) - 3
        return answer(207, {"accepted": accepted, "queued": accepted, "rejected": 3, "errors": errors})

    gateway.answers = [mixed]
    summary = await sent(gateway, generate=10)
    assert (summary.accepted, summary.requests) == (7, 1)
    assert summary.rejected == {"schema": 2, "too_large": 1}
    assert summary.messages[0] == "schema: `source` is missing."
    assert not summary.complete
    assert summary.failure is None


async def test_a_batch_without_any_acceptable_event_does_not_stop_the_others(gateway: Gateway) -> None:
    def none(events: list[dict[str, Any]]) -> Response:
        errors = [{"index": 0, "event_id": None, "code": "schema", "message": "No."}]
        return answer(422, {"detail": "none", "errors": errors, "errors_omitted": len(events) - 1})

    gateway.answers = [none]
    summary = await sent(gateway, generate=30, batch_size=10, concurrency=1)
    assert (summary.accepted, summary.rejected) == (20, {"schema": 1, "unlisted": 9})
    assert summary.unique == 30


@pytest.mark.parametrize(
    "given",
    [refusal(401, "A key is missing."), lambda events: Response("<html>", 404), lambda e: answer(200, 1)],
)
async def test_an_answer_that_retrying_cannot_change_ends_it_at_once(gateway: Gateway, given: Answer) -> None:
    gateway.answers = [given]
    summary = await sent(gateway, generate=1_000, batch_size=10, concurrency=1)
    assert summary.requests == 1
    assert summary.failure is not None
    assert gateway.url in summary.failure


async def test_lines_that_are_no_json_are_numbered_and_the_rest_is_sent(
    gateway: Gateway, tmp_path: Path
) -> None:
    lines = event_lines(8)
    lines[2:2] = [b"{nonsense", b"", b'"\xff"']
    lines.append(b'{"half": ')
    summary = await sent(gateway, file=written(tmp_path / "events", lines))
    assert (summary.accepted, summary.events_read) == (8, 8)
    assert (summary.unreadable, summary.unreadable_lines) == (3, [3, 5, 12])
    assert not summary.complete


async def test_a_gzip_file_that_breaks_off_is_sent_as_far_as_it_goes(
    gateway: Gateway, tmp_path: Path
) -> None:
    path = tmp_path / "events.gz"
    whole = gzip.compress(b"\n".join(event_lines(2_000)))
    path.write_bytes(whole[: len(whole) // 2])
    summary = await sent(gateway, file=path)
    assert 0 < summary.accepted < 2_000
    assert summary.accepted == summary.events_read == len(gateway.events)
    assert summary.failure is not None
    assert "breaks off" in summary.failure


async def test_large_events_are_spread_over_requests_below_the_gateways_limit(
    gateway: Gateway, tmp_path: Path
) -> None:
    line = json.dumps({"payload": "x" * 250_000}).encode()
    summary = await sent(gateway, file=written(tmp_path / "events", [line] * 100), batch_size=1_000)
    assert summary.accepted == 100
    assert max(map(len, gateway.requests)) * len(line) < 10 * 1024 * 1024


async def test_a_rate_is_kept_with_an_even_flow(gateway: Gateway) -> None:
    started = time.monotonic()
    summary = await sent(gateway, generate=200, rate=400.0)
    assert summary.accepted == 200
    assert time.monotonic() - started > 0.35
    assert max(map(len, gateway.requests)) <= 40


async def test_standard_input_is_read_plain_or_gzip_and_the_exit_status_tells(gateway: Gateway) -> None:
    text = b"\n".join(event_lines(50))
    for data in (text, gzip.compress(text)):
        code, out, _ = await _command(gateway, "-", "--json", "--duplicates", "0.2", data=data)
        summary = json.loads(out)
        assert (summary["unique"], summary["duplicates"], summary["accepted"]) == (50, 10, 60)
        assert code == 0
    code, out, err = await _command(gateway, "-", data=text + b"\nnonsense\n")
    assert code == 1
    assert "line 51" in err
    assert "50" in out


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    app = Typer()
    app.command()(send_command)
    for arguments in (
        [],
        ["-", "--generate", "5"],
        [str(tmp_path / "absent")],
        ["--generate", "5", "--url", "localhost:8080"],
        ["--generate", "5", "--url", "http://[::"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output


def _key(event: dict[str, Any]) -> tuple[str, str]:
    return event["topic"], event["event_id"]


async def _command(gateway: Gateway, *arguments: str, data: bytes) -> tuple[int, str, str]:
    """Run the command as a process of its own: exit status, standard output, standard error."""
    code = "import typer; from cli.send import send_command; typer.run(send_command)"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *arguments,
        "--url",
        gateway.url,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate(data)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
