"""Poison next to good records, and clocks that are an hour off."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Message, Producer

from tests.faults.stage import Stage
from tests.support.ledger import Outcome, Poison
from tests.support.skips import unavailable

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]

HOUR_MS = 3_600_000
POISONED = 0
"""The partition that gets poison only."""
_LIBRARIES = [
    Path("/usr/lib") / architecture / "faketime/libfaketime.so.1"
    for architecture in ("x86_64-linux-gnu", "aarch64-linux-gnu")
]


def off_by(hours: str) -> dict[str, str]:
    """An environment in which the clock is so many hours off; what measures durations is left alone."""
    found = [library for library in _LIBRARIES if library.exists()]
    if not found:
        unavailable("libfaketime", "it is not installed; Debian's package libfaketime has it.")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": f"{hours}h",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def test_poisoned_partition_costs_its_neighbours_nothing_with_clocks_an_hour_off(stage: Stage) -> None:
    environment = stage.deployment.environment
    stage.inject("gateway's clock an hour ahead, one worker's an hour behind, the other's right")
    stage.deployment.environment = {**environment, **off_by("+1")}
    stage.gateway = stage.role("gateway")
    stage.deployment.environment = {**environment, **off_by("-1")}
    stage.worker()
    stage.deployment.environment = environment
    stage.worker()
    stage.admin = stage.role("admin")
    stage.load.start()
    stage.load.wait_for(300)

    poison(stage, 2_000)
    stage.load.wait_for(600)
    stage.recovered()
    stage.finish()

    letters = [one for one in stage.store.tables().letters if one.place.partition == POISONED]
    reasons = {one.reason for one in letters}
    assert len([one for one in letters if (one.key or b"").startswith(b"flood-")]) == 2_000
    assert {"invalid_json", "invalid_encoding", "tombstone", "schema"} <= reasons


def poison(stage: Stage, count: int) -> None:
    """Write records that are no events into one partition, with timestamps an hour and more off."""
    producer = Producer({"bootstrap.servers": stage.brokers.bootstrap, "acks": "all", "log_level": 0})
    values = (b"not json", b"\xff\xfe\xfd", b"[]", b'{"topic": "orders"}', None)
    now = int(time.time() * 1_000)
    moments = (now - HOUR_MS, now + HOUR_MS, 1)
    for number in range(count):
        item = Poison(b"flood-%d" % number, values[number % len(values)])

        def delivered(error: KafkaError | None, _: Message, item: Poison = item) -> None:
            stage.ledger.note([item], Outcome.OK if error is None else Outcome.UNKNOWN)

        producer.produce(
            stage.topic,
            item.value,
            item.key,
            partition=POISONED,
            timestamp=moments[number % len(moments)],
            on_delivery=delivered,
        )
        producer.poll(0)
    assert producer.flush(40) == 0
    stage.inject(f"{count} records of poison in partition {POISONED}, timestamps an hour off and from 1970")
