"""Which partition a key goes to."""

from __future__ import annotations

from zlib import crc32


def partition_for(key: bytes, partitions: int) -> int:
    """CRC-32 of the key, modulo the number of partitions: librdkafka's `consistent` partitioner, so producers
    built on it that use the same key land on the same partition as the gateway."""
    return crc32(key) % partitions
