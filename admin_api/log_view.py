"""What the admin API sees of the log, which may be down."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from broker.errors import BrokerError, TopicMissing
from broker.ports import LogAdmin, PartitionOffsets


class LogState(msgspec.Struct, frozen=True):
    """The log at one moment.

    Attributes:
        status: `ok`, `unavailable` or `topic_missing`.
        detail: a sentence, if the status is not `ok`.
        offsets: by partition; None if the status is not `ok`.
    """

    status: str
    detail: str | None = None
    offsets: Mapping[int, PartitionOffsets] | None = None


class LogView:
    """Asks the log for its offsets, and answers in bounded time whatever state the log is in.

    Connects at the first question; a log that is down at that time is tried again at the next. Used by one
    event loop.

    Args:
        timeout: seconds to wait for an answer.
    """

    def __init__(self, admin: LogAdmin, log_topic: str, *, timeout: float) -> None:
        self.log_topic = log_topic
        self._admin = admin
        self._timeout = timeout
        self._connecting = asyncio.Lock()
        self._connected = False
        self._overdue: set[asyncio.Task[LogState]] = set()

    async def state(self) -> LogState:
        """The offsets as of now, or why there are none."""
        if self._overdue:
            # Another question would only wait behind it.
            return self._late()
        question = asyncio.create_task(self._ask(), name="ask the log for its offsets")
        # Not cancelled when it is late: a client library interrupted while connecting may leak.
        done, _ = await asyncio.wait({question}, timeout=self._timeout)
        if not done:
            self._overdue.add(question)
            question.add_done_callback(self._overdue.discard)
            return self._late()
        return question.result()

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        overdue = set(self._overdue)
        for question in overdue:
            question.cancel()
        if overdue:
            await asyncio.wait(overdue)
        await self._admin.stop()
        self._connected = False

    async def _ask(self) -> LogState:
        try:
            async with self._connecting:
                if not self._connected:
                    await self._admin.start()
                    self._connected = True
            return LogState("ok", offsets=await self._admin.offsets())
        except TopicMissing as error:
            return LogState("topic_missing", str(error))
        except BrokerError as error:
            return LogState("unavailable", str(error))

    def _late(self) -> LogState:
        return LogState("unavailable", f"The log has not answered within {self._timeout:g} s.")
