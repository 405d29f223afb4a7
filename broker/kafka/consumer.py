"""Reading the Kafka topic as a member of the consumer group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final

from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaError

from broker.errors import BrokerError, CommitFailed, LogUnavailable, OffsetOutOfRange
from broker.kafka.client import describe, fetch_offsets, fetch_topic, retried, translate, translated
from broker.kafka.membership import Membership
from broker.ports import PartitionOffsets, Poll, RebalanceListener, Record, UndecodableRecord
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)

_LONGEST_WAIT: Final = 0.5
"""Seconds between two looks at the health of the membership while nothing arrives."""
_TOPIC_CHECK_INTERVAL: Final = 5.0
_UNREADABLE: Final = (
    kafka_errors.CorruptRecordException,
    kafka_errors.RecordTooLargeError,
    kafka_errors.UnsupportedCodecError,
)
"""What aiokafka raises of its own for bytes it cannot read; codecs and parsers add whatever they raise."""


class KafkaConsumer:
    """The consumer port on Kafka.

    The positions in here are the ones that count: they say from where each partition is to be read next, are
    set by `seek`, and move only with what `poll` returns. The client's own positions follow them.
    """

    def __init__(self, settings: KafkaSettings, listener: RebalanceListener) -> None:
        self._settings = settings
        self._listener = listener
        self._membership: Membership | None = None
        self._assigned: frozenset[int] = frozenset()
        self._positions: dict[int, int] = {}
        self._postponed: dict[int, BrokerError] = {}
        self._last_served = -1
        self._started = False
        self._last_answer = 0
        self._silent = 0.0
        self._next_topic_check = 0.0

    async def start(self) -> None:
        """Raises LogUnavailable, TopicMissing, LogMisconfigured, within `start_timeout_seconds`."""
        await self._join()
        self._started = True

    async def stop(self) -> None:
        """Leave the group within about `stop_timeout_seconds`. Idempotent; the listener is not called."""
        self._started = False
        membership, self._membership = self._membership, None
        self._forget()
        if membership is not None:
            await membership.close(self._settings.stop_timeout_seconds)

    def assignment(self) -> frozenset[int]:
        return self._assigned

    def seek(self, partition: int, offset: int) -> None:
        membership = self._membership
        if membership is None or partition not in self._assigned:
            return
        if membership.seek(partition, offset):
            self._positions[partition] = offset
            self._postponed.pop(partition, None)

    async def poll(self, max_records: int, timeout: float) -> Poll:
        """See `broker.ports.Consumer.poll`. Raises LogMisconfigured too.

        When the client has to be replaced this takes longer than `timeout`, by up to `start_timeout_seconds`
        and `stop_timeout_seconds`.
        """
        deadline = time.monotonic() + timeout
        while True:
            membership = await self._healthy()
            membership.touch()
            self._raise_postponed()
            poll = await self._collect(membership, max_records)
            remaining = deadline - time.monotonic()
            if poll.records or poll.next_offsets or remaining <= 0:
                return poll
            await self._wait(membership, min(remaining, _LONGEST_WAIT))

    async def commit(self, committable: Mapping[int, int]) -> None:
        """See `broker.ports.Consumer.commit`; gives up after `commit_timeout_seconds`."""
        offsets = {p: offset for p, offset in committable.items() if p in self._assigned}
        if not offsets:
            return
        timeout = self._settings.commit_timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                await self._member().commit(offsets)
        except TimeoutError:
            raise CommitFailed(f"Kafka did not confirm the offsets within {timeout:g} s.") from None
        except LogUnavailable as error:
            raise CommitFailed(str(error)) from error
        except KafkaError as error:
            raise CommitFailed(f"Kafka did not take the offsets ({describe(error)}).") from error

    async def committed(self, partitions: Iterable[int]) -> dict[int, int | None]:
        """Raises LogUnavailable, LogMisconfigured."""
        async with translated(self._settings, self._settings.request_timeout_seconds):
            return await self._member().committed(list(partitions))

    async def offsets(self, partitions: Iterable[int]) -> dict[int, PartitionOffsets]:
        """Raises LogUnavailable, TopicMissing, LogMisconfigured."""
        client, wanted = self._member().client, list(partitions)
        async with translated(self._settings, self._settings.request_timeout_seconds):
            return await retried(lambda: fetch_offsets(client, self._settings, wanted))

    def _member(self) -> Membership:
        if self._membership is None:
            raise LogUnavailable("The consumer is not connected to Kafka at the moment.")
        return self._membership

    # Membership

    async def _join(self) -> None:
        membership = Membership(self._settings, self._on_revoked, self._on_assigned)
        try:
            await membership.open()
        except BaseException:
            await membership.close(0)
            raise
        self._membership = membership
        self._silent = 0.0

    async def _on_revoked(self, partitions: frozenset[int]) -> None:
        ours = partitions & self._assigned
        if not ours:
            return
        try:
            await self._listener.on_revoked(ours)
        finally:
            self._assigned -= ours
            for partition in ours:
                self._positions.pop(partition, None)
                self._postponed.pop(partition, None)

    async def _on_assigned(self, partitions: frozenset[int]) -> None:
        self._forget()
        self._assigned = partitions
        if partitions:
            await self._listener.on_assigned(partitions)

    def _forget(self) -> None:
        self._assigned = frozenset()
        self._positions.clear()
        self._postponed.clear()

    async def _healthy(self) -> Membership:
        """The membership, replaced if the client is stuck. Raises LogUnavailable while Kafka is away."""
        if not self._started:
            raise LogUnavailable("The consumer is not running.")
        membership = self._membership
        if membership is not None and (membership.failed or self._silent > self._patience(membership)):
            _log.warning("the Kafka consumer is stuck; connecting anew")
            self._membership = None
            await self._on_revoked(self._assigned)
            await membership.close(self._settings.stop_timeout_seconds)
        if self._membership is None:
            await self._join()
        return self._member()

    def _patience(self, membership: Membership) -> float:
        """Seconds that may pass without a sign of life from the brokers."""
        patience = self._settings.reconnect_after_seconds
        if membership.joining:
            patience += self._settings.session_timeout_seconds + self._settings.rebalance_timeout_seconds
        return patience

    async def _wait(self, membership: Membership, timeout: float) -> None:
        started = time.monotonic()
        try:
            await membership.wait(self._positions, timeout)
        except KafkaError as error:
            raise translate(error, self._settings) from error
        if not membership.topic_known and time.monotonic() >= self._next_topic_check:
            self._next_topic_check = time.monotonic() + _TOPIC_CHECK_INTERVAL
            async with translated(self._settings, self._settings.start_timeout_seconds):
                await fetch_topic(membership.client, self._settings)
        answer = membership.last_answer(self._positions)
        if answer != self._last_answer or not (self._positions or membership.joining):
            self._last_answer = answer
            self._silent = 0.0
        else:
            self._silent += time.monotonic() - started

    # Reading

    def _raise_postponed(self) -> None:
        while self._postponed:
            _, error = self._postponed.popitem()
            raise error

    async def _collect(self, membership: Membership, max_records: int) -> Poll:
        """What has been fetched already. Begins with the partition after the one served last, so that a full
        one cannot starve the others."""
        records: list[Record | UndecodableRecord] = []
        moved: dict[int, int] = {}
        order = sorted(self._positions, key=lambda partition: (partition <= self._last_served, partition))
        for partition in order:
            room = max_records - len(records)
            if room <= 0 or membership.joining:
                break
            try:
                taken, after = await self._take(membership, partition, room)
            except BrokerError as error:
                if not moved:
                    raise
                # What was taken from the other partitions is returned first: their positions have moved.
                self._postponed[partition] = error
                break
            if taken:
                records += taken
                self._last_served = partition
            if after is not None:
                moved[partition] = after
        # A partition that was revoked while another one was read does not count as read.
        if moved.keys() - self._positions.keys():
            moved = {p: after for p, after in moved.items() if p in self._positions}
            records = [record for record in records if record.partition in self._positions]
        if moved:
            self._silent = 0.0
        return Poll(records=records, next_offsets=moved)

    async def _take(
        self, membership: Membership, partition: int, room: int
    ) -> tuple[list[Record | UndecodableRecord], int | None]:
        """Records of one partition, and its new position if it moved."""
        position = self._positions.get(partition)
        if position is None:
            return [], None
        taken: list[Record | UndecodableRecord]
        try:
            taken = list(await membership.take(partition, room))
        except kafka_errors.OffsetOutOfRangeError as error:
            raise OffsetOutOfRange(partition, position) from error
        except Exception as error:  # the decoders of the client raise anything at all for bad bytes
            membership.touch()
            if isinstance(error, KafkaError) and not isinstance(error, _UNREADABLE):
                raise translate(error, self._settings) from error
            return await self._salvage(membership, partition, position, room)
        after = membership.position(partition)
        if after is None or after == position:
            return taken, None
        self._positions[partition] = after
        return taken, after

    async def _salvage(
        self, membership: Membership, partition: int, position: int, room: int
    ) -> tuple[list[Record | UndecodableRecord], int | None]:
        """Read around bytes the client cannot decode, from our position: its own has skipped records."""
        # Until then the client must not read on, it would answer for another position.
        membership.seek(partition, position)
        async with translated(self._settings, self._settings.request_timeout_seconds):
            taken, after = await membership.salvage(partition, position, room)
        if self._positions.get(partition) != position:
            return [], None
        if after == position or not membership.seek(partition, after):
            return [], None
        for record in taken:
            if isinstance(record, UndecodableRecord):
                _log.warning(
                    "partition %s: offset %s cannot be read: %s", partition, record.offset, record.error
                )
        self._positions[partition] = after
        return taken, after
