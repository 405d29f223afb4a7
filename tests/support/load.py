"""A steady load: HTTP clients that retry as clients do, and direct producers that also write poison."""

from __future__ import annotations

import datetime as dt
import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from events.event import log_key
from tests.support.ledger import Ledger, Outcome, Poison, Sent, canonical
from tests.support.processes import wait_until

DUPLICATE_SHARE: Final = 0.2
CONFLICT_SHARE: Final = 0.02
_TOPICS: Final = ("orders", "payments", "naïve ☃")
_START: Final = 1_767_225_600
_REMEMBERED: Final = 400
_LONGEST_PAUSE: Final = 0.5
_POISON: Final = (b"not json", b"\xff\xfe", b"[]", b"{", b'{"topic": "orders"}')


class Events:
    """Makes events, some of which repeat or contradict an earlier one. One thread uses it."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._random = random.Random(f"{name} {seed}")
        self._made = 0
        self._recent: list[dict[str, Any]] = []

    def batch(self, count: int) -> list[dict[str, Any]]:
        return [self.next() for _ in range(count)]

    def next(self) -> dict[str, Any]:
        chance = self._random.random()
        if self._recent and chance < DUPLICATE_SHARE:
            return self._random.choice(self._recent)
        if self._recent and chance < DUPLICATE_SHARE + CONFLICT_SHARE:
            earlier = self._random.choice(self._recent)
            return {**earlier, "payload": {"contradicts": self._random.getrandbits(40)}}
        self._made += 1
        moment = dt.datetime.fromtimestamp(_START + self._made, dt.UTC)
        event = {
            "topic": self._random.choice(_TOPICS),
            "event_id": f"{self._name}-{self._made}",
            "timestamp": moment.isoformat().replace("+00:00", "Z"),
            "source": self._name,
            "payload": {"n": self._made, "text": "é" * self._random.randrange(30)},
        }
        self._recent.append(event)
        del self._recent[:-_REMEMBERED]
        return event

    def poison(self) -> Poison:
        """A record that is no event; its key tells it from all others."""
        self._made += 1
        value = None if self._random.random() < 0.2 else self._random.choice(_POISON)
        return Poison(f"poison-{self._name}-{self._made}".encode(), value)


def sent(event: dict[str, Any]) -> Sent:
    """The ledger's view of an event document."""
    moment = dt.datetime.fromisoformat(event["timestamp"])
    content = canonical(int(moment.timestamp()), event["source"], event["payload"])
    return Sent(event["topic"], event["event_id"], content)


class _Sender(threading.Thread):
    """Does one thing at a steady rate until it is stopped."""

    def __init__(self, name: str, interval: float) -> None:
        super().__init__(name=name, daemon=True)
        self.interval = interval
        self.stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        due = time.monotonic()
        try:
            while not self.stopping.is_set():
                self.step()
                # After an outage the rate is not made up for: a steady load, no surge.
                due = max(due + self.interval, time.monotonic())
                self.stopping.wait(due - time.monotonic())
            self.finish()
        except BaseException as error:  # noqa: BLE001 - raised again by `Load.stop`, in the test's thread
            self.failure = error

    def step(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Settle what is open."""


class HttpSender(_Sender):
    """Publishes batches. A batch that was not acknowledged is sent again until it is, or the load ends."""

    def __init__(
        self, name: str, url: str, ledger: Ledger, *, interval: float, batch: int, timeout: float
    ) -> None:
        super().__init__(name, interval)
        self._url = f"{url}/publish"
        self._ledger = ledger
        self._batch = batch
        self._timeout = timeout
        self._events = Events(name, 1)
        self._client = httpx.Client(timeout=timeout)
        self.statuses: dict[int, int] = {}
        self.acknowledged = 0
        self.slowest = 0.0

    def step(self) -> None:
        events = self._events.batch(self._batch)
        while not self._publish(events):
            if self.stopping.wait(_LONGEST_PAUSE):
                return

    def finish(self) -> None:
        self._client.close()

    def _publish(self, events: Sequence[dict[str, Any]]) -> bool:
        items = [sent(event) for event in events]
        started = time.monotonic()
        try:
            answer = self._client.post(self._url, json=events)
        except httpx.ConnectError:
            self._ledger.note(items, Outcome.FAILED)
            return False
        except httpx.TransportError:
            self._ledger.note(items, Outcome.UNKNOWN)
            return False
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        if answer.status_code == 200:
            assert answer.json()["accepted"] == len(events), answer.text
            self._ledger.note(items, Outcome.OK)
            self.acknowledged += 1
            return True
        self._ledger.note(items, Outcome.UNKNOWN)
        assert answer.status_code == 503, f"{answer.status_code}: {answer.text}"
        assert int(answer.headers["retry-after"]) >= 1
        return False


class DirectProducer(_Sender):
    """Writes good records and poison straight into the log, with librdkafka."""

    def __init__(
        self, name: str, bootstrap: str, topic: str, ledger: Ledger, *, interval: float, poison_share: float
    ) -> None:
        super().__init__(name, interval)
        self._topic = topic
        self._ledger = ledger
        self._poison_share = poison_share
        self._events = Events(name, 2)
        self._random = random.Random(name)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                # The gateway's partitioner, so that an identity stays in one partition.
                "partitioner": "consistent",
                "linger.ms": 5,
                "delivery.timeout.ms": 20_000,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 2_000,
                "log_level": 0,
            }
        )

    def step(self) -> None:
        item: Sent | Poison
        if self._random.random() < self._poison_share:
            item = self._events.poison()
            key, value = item.key, item.value
        else:
            event = self._events.next()
            item = sent(event)
            key, value = log_key(item.topic, item.event_id), json.dumps(event).encode()

        def delivered(error: KafkaError | None, _: Message) -> None:
            self._ledger.note([item], Outcome.OK if error is None else Outcome.UNKNOWN)

        try:
            self._producer.produce(self._topic, value, key, on_delivery=delivered)
        except (BufferError, KafkaException):
            self._ledger.note([item], Outcome.FAILED)
        self._producer.poll(0)

    def finish(self) -> None:
        assert self._producer.flush(40) == 0, "deliveries without a report"


class Load:
    """Senders that run together.

    Args:
        url: the gateway's.
        bootstrap, topic: for direct producers; none without.
        rate: events per second over HTTP, from two clients together; a third as many again are direct.
        name: loads of other names send other events.
    """

    def __init__(
        self,
        ledger: Ledger,
        url: str,
        bootstrap: str | None = None,
        topic: str = "",
        *,
        rate: float = 240.0,
        batch: int = 10,
        poison_share: float = 0.05,
        timeout: float = 15.0,
        name: str = "",
    ) -> None:
        clients = 2
        self.ledger = ledger
        self.http = [
            HttpSender(
                f"{name}http-{n}", url, ledger, interval=batch * clients / rate, batch=batch, timeout=timeout
            )
            for n in range(clients)
        ]
        self.direct: list[DirectProducer] = []
        if bootstrap:
            direct = DirectProducer(
                f"{name}direct", bootstrap, topic, ledger, interval=3 / rate, poison_share=poison_share
            )
            self.direct.append(direct)

    @property
    def _senders(self) -> Sequence[_Sender]:
        return [*self.http, *self.direct]

    def start(self) -> None:
        for sender in self._senders:
            sender.start()

    @property
    def running(self) -> bool:
        return any(sender.is_alive() and not sender.stopping.is_set() for sender in self._senders)

    def wait_for(self, acknowledged: int, timeout: float = 30.0) -> None:
        """Wait until so many more attempts were acknowledged."""
        goal = self.ledger.acknowledged + acknowledged

        def reached() -> bool:
            self.raise_failure()
            return self.ledger.acknowledged >= goal

        wait_until(reached, timeout, f"{acknowledged} more acknowledgements")

    def stop(self, timeout: float = 60.0) -> None:
        """Let every sender finish what it is at. Raises what made one fail."""
        for sender in self._senders:
            sender.stopping.set()
        for sender in self._senders:
            if sender.ident is not None:
                sender.join(timeout)
                assert not sender.is_alive(), f"{sender.name} hangs"
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what made a sender fail, if one did."""
        for sender in self._senders:
            if sender.failure is not None:
                raise AssertionError(f"{sender.name} failed") from sender.failure

    def statuses(self) -> dict[int, int]:
        """HTTP answers by status."""
        total: dict[int, int] = {}
        for client in self.http:
            for status, count in client.statuses.items():
                total[status] = total.get(status, 0) + count
        return total

    @property
    def slowest_answer(self) -> float:
        """Seconds."""
        return max(client.slowest for client in self.http)
