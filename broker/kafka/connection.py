"""A connection to one broker whose loss is always an error of the client."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError


class LogConnection(AIOKafkaConnection):  # type: ignore[misc]
    """aiokafka's connection, for uvloop as well.

    Where asyncio ignores a write to a transport that was closed a moment ago, uvloop raises RuntimeError.
    aiokafka does not expect that: the task that happens to write (the one that sends, or fetches, or keeps
    the metadata fresh) would end for good.
    """

    def send(self, request: Any, expect_response: bool = True) -> Awaitable[Any]:
        """Raises KafkaConnectionError."""
        try:
            with lost_transport():
                answer: Awaitable[Any] = super().send(request, expect_response)
        except KafkaConnectionError:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise
        return answer


@contextmanager
def lost_transport() -> Iterator[None]:
    """Raise KafkaConnectionError for a write to a closed transport."""
    try:
        yield
    except RuntimeError as error:
        raise KafkaConnectionError(f"The connection was lost: {error}") from error
