"""Connections to brokers that are lost at an awkward moment."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from broker.kafka.connection import LogConnection


class ClosedWriter:
    """What uvloop does on a transport that was closed a moment ago, where asyncio ignores the write."""

    def write(self, data: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    def close(self) -> None:
        pass


async def test_a_request_on_a_transport_closed_a_moment_ago_is_a_lost_connection() -> None:
    connection = LogConnection("127.0.0.1", 9)
    # As `connect` leaves it, without a peer.
    connection._reader = asyncio.StreamReader()
    connection._writer = ClosedWriter()
    connection._read_task = asyncio.create_task(connection._reader.read())
    connection._versions = {3: (0, 5)}
    with pytest.raises(KafkaConnectionError):
        await connection.send(MetadataRequest(["events"]))
    assert not connection.connected()
