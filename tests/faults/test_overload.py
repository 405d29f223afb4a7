"""More than can be taken: the answer is 503 in time, memory stays bounded, and everything is made up for."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from tests.faults.stage import Stage
from tests.faults.test_broker import MOST_GROWTH, PUBLISH_SECONDS, resident_mebibytes
from tests.support.processes import Process, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(400)]

OVERLOAD_SECONDS = 60.0
SLOW_CLIENTS = 2_000
PREFETCHED = 32.0
"""MiB of records that a worker with a backlog may hold besides, AGGREGATOR_KAFKA__MAX_FETCH_BYTES."""
READ_SECONDS = 10.0


class Memory:
    """Samples what processes hold in memory, in MiB."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._before = [resident_mebibytes(process) for process in processes]
        self._most = list(self._before)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sample-memory", daemon=True)
        self._thread.start()

    def stop(self) -> list[tuple[str, float, float, float]]:
        """Name, before, most and after, of each."""
        self._done.set()
        self._thread.join()
        after = [resident_mebibytes(process) for process in self._processes]
        names = [process.name for process in self._processes]
        return list(zip(names, self._before, self._most, after, strict=True))

    def _sample(self) -> None:
        # A test that fails ends the processes without having stopped this.
        with contextlib.suppress(FileNotFoundError):
            while not self._done.wait(0.2):
                for number, process in enumerate(self._processes):
                    self._most[number] = max(self._most[number], resident_mebibytes(process))


def bounded(stage: Stage, memory: Memory, growth: float) -> None:
    figures = memory.stop()
    told = ", ".join(f"{name} {b:.0f} -> {most:.0f} -> {after:.0f} MiB" for name, b, most, after in figures)
    stage.report.checked.append(f"resident memory before, at most, after: {told}")
    assert all(most - before < growth for _, before, most, _ in figures), told


def pass_time(stage: Stage, seconds: float) -> None:
    ends = time.monotonic() + seconds

    def over() -> bool:
        stage.load.raise_failure()
        return time.monotonic() > ends

    wait_until(over, seconds + 30, f"{seconds:g} s to pass")


def test_twice_of_what_the_worker_takes_is_lag_and_not_memory(stage: Stage) -> None:
    # The database is made slow until a worker takes about half of what comes.
    stage.deployment.environment["AGGREGATOR_WORKER__MAX_BATCH_RECORDS"] = "100"
    workers = stage.start(workers=1, load=False)
    stage.make_load(rate=900).start()
    stage.storing()
    stage.database.proxy.slow(delay=0.045)
    memory = Memory([stage.gateway, *workers])
    before = received(stage)
    began = time.monotonic()
    acknowledged = stage.ledger.acknowledged
    pass_time(stage, OVERLOAD_SECONDS)
    seconds = time.monotonic() - began
    taken = (received(stage) - before) / seconds
    sent = (stage.ledger.acknowledged - acknowledged) / seconds
    stage.inject(f"{sent:.0f} events/s for {seconds:.0f} s at a worker that took {taken:.0f}/s")
    assert sent > 1.8 * taken, "this was no overload"
    lag = stage.stats()["queue_depth"]
    assert lag > 0
    stage.report.checked.append(f"lag at the end of it: {lag} records")
    bounded(stage, memory, MOST_GROWTH + PREFETCHED)
    stage.database.proxy.heal()
    stage.recovered()
    stage.finish()
    assert stage.load.slowest_answer < PUBLISH_SECONDS + 2


def received(stage: Stage) -> int:
    return sum(counts.received for counts in stage.store.tables().counts.values())


def test_stopped_broker_is_said_to_every_client_in_time(stage: Stage) -> None:
    workers = stage.start(load=False)
    stage.make_load(rate=900).start()
    stage.storing()
    memory = Memory([stage.gateway, *workers])
    stage.inject(f"broker killed for {OVERLOAD_SECONDS:.0f} s while 900 events/s are sent")
    stage.brokers.node.kill()
    pass_time(stage, OVERLOAD_SECONDS)
    refused = stage.load.statuses().get(503, 0)
    assert refused >= OVERLOAD_SECONDS / (PUBLISH_SECONDS + 1)
    stage.brokers.node.start()
    stage.recovered()
    bounded(stage, memory, MOST_GROWTH)
    assert stage.load.slowest_answer < PUBLISH_SECONDS + 2
    stage.finish()


def test_two_thousand_slow_clients_are_cut_off_and_cost_the_others_nothing(stage: Stage) -> None:
    stage.deployment.environment["AGGREGATOR_INGEST__READ_TIMEOUT_SECONDS"] = str(READ_SECONDS)
    stage.start()
    memory = Memory([stage.gateway])
    ended, statuses = trickle(stage.deployment.gateway_url, SLOW_CLIENTS)
    stage.inject(f"{SLOW_CLIENTS} clients that send a byte a second, for {ended:.0f} s")
    # Each was told 408 or 503, or was closed; nobody was left hanging.
    stage.report.checked.append(
        "slow clients: " + ", ".join(f"{n} x {status or 'closed'}" for status, n in sorted(statuses.items()))
    )
    assert sum(statuses.values()) == SLOW_CLIENTS
    assert set(statuses) <= {0, 408, 503}
    assert ended < READ_SECONDS + 20
    stage.recovered()
    bounded(stage, memory, 150.0)
    assert stage.load.slowest_answer < PUBLISH_SECONDS + 2
    stage.finish()


def trickle(url: str, count: int) -> tuple[float, dict[int, int]]:
    """Send slowly on many connections until the other side has ended each.

    Returns:
        The seconds until the last one was ended, and how many got which status; 0 for none.
    """
    address = urlsplit(url)
    body = json.dumps([{"topic": "slow"}] * 100).encode()
    head = (
        f"POST /publish HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    statuses: dict[int, int] = {}
    began = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            client = socket.create_connection((address.hostname or "", address.port or 80), timeout=30)
            client.sendall(head)
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, bytearray())
        next_byte = time.monotonic()
        while selector.get_map():
            assert time.monotonic() < began + 120, f"{len(selector.get_map())} clients are left hanging"
            for key, _ in selector.select(0.1):
                answer: bytearray = key.data
                if not _read(key.fileobj, answer):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    status = int(answer.split(b" ", 2)[1]) if answer else 0
                    statuses[status] = statuses.get(status, 0) + 1
            if time.monotonic() > next_byte:
                next_byte = time.monotonic() + 1
                for key in list(selector.get_map().values()):
                    _write(key.fileobj)
    return time.monotonic() - began, statuses


def _read(client: object, answer: bytearray) -> bool:
    """Take what has come; False once the other side has ended the connection."""
    assert isinstance(client, socket.socket)
    try:
        chunk = client.recv(4_096)
    except BlockingIOError:
        return True
    except OSError:
        return False
    answer += chunk
    return bool(chunk)


def _write(client: object) -> None:
    assert isinstance(client, socket.socket)
    try:
        client.send(b" ")
    except OSError:
        return
