"""Record batches byte by byte, for what no well-behaved client sends."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from broker.kafka.client import connect
from broker.settings import KafkaSettings

CRC_AT = 17
ATTRIBUTES_AT = 21
"""From here on the checksum covers the batch."""


def batch(
    values: Iterable[bytes | None],
    *,
    key: bytes | None = b"key",
    headers: Iterable[tuple[str, bytes | None]] = (),
    timestamp: int = 1_700_000_000_000,
    compression: int = 0,
) -> bytes:
    """A valid batch; `compression` is the codec's number in the format (0 none, 1 gzip, 3 lz4)."""
    builder = DefaultRecordBatchBuilder(2, compression, False, -1, -1, 0, 10_000_000)
    for number, value in enumerate(values):
        builder.append(number, timestamp, key, value, list(headers))
    return bytes(builder.build())


def sealed(raw: bytes) -> bytes:
    """The batch with the checksum its bytes ought to have."""
    checksum = struct.pack(">I", calc_crc32c(raw[ATTRIBUTES_AT:]))
    return raw[:CRC_AT] + checksum + raw[ATTRIBUTES_AT:]


def with_codec(raw: bytes, codec: int) -> bytes:
    """The batch claiming another compression codec."""
    (attributes,) = struct.unpack_from(">h", raw, ATTRIBUTES_AT)
    changed = struct.pack(">h", (attributes & ~7) | codec)
    return sealed(raw[:ATTRIBUTES_AT] + changed + raw[ATTRIBUTES_AT + 2 :])


def with_broken_checksum(raw: bytes) -> bytes:
    return raw[:CRC_AT] + bytes(byte ^ 0xFF for byte in raw[CRC_AT:ATTRIBUTES_AT]) + raw[ATTRIBUTES_AT:]


async def produce_raw(settings: KafkaSettings, partition: int, raw: bytes) -> int:
    """Append one batch as it is; returns the broker's error code, 0 for none."""
    client = await connect(settings, "raw")
    try:
        await client.set_topics([settings.topic])
        (leader,) = {broker.nodeId for broker in client.cluster.brokers()}
        request = ProduceRequest(
            transactional_id=None,
            required_acks=-1,
            timeout=10_000,
            topics=[(settings.topic, [(partition, raw)])],
        )
        answer: Any = await client.send(leader, request)
        ((_, ((_, code, *_),)),) = answer.topics
        return int(code)
    finally:
        await client.close()
