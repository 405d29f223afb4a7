"""Kafka settings that contradict each other are refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from broker.settings import SMALLEST_BATCH_BYTES, KafkaSettings
from events.event import MAX_EVENT_BYTES


def settings(**values: Any) -> KafkaSettings:
    return KafkaSettings(**{"bootstrap_servers": "127.0.0.1:9092", **values})


def test_the_defaults_agree_with_each_other_and_with_the_largest_event() -> None:
    defaults = settings()
    assert MAX_EVENT_BYTES < defaults.max_batch_bytes <= defaults.max_partition_fetch_bytes
    assert defaults.rebalance_timeout_seconds < defaults.session_timeout_seconds


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"bootstrap_servers": " , "}, "bootstrap_servers"),
        ({"topic": "with space"}, "topic"),
        ({"max_batch_bytes": SMALLEST_BATCH_BYTES - 1}, "max_batch_bytes"),
        ({"max_buffer_bytes": 400_000}, "max_buffer_bytes"),
        ({"max_partition_fetch_bytes": 400_000}, "max_partition_fetch_bytes"),
        ({"max_fetch_bytes": 400_000}, "max_fetch_bytes"),
        ({"rebalance_timeout_seconds": 45}, "rebalance_timeout_seconds"),
        ({"request_timeout_seconds": 45}, "request_timeout_seconds"),
        ({"heartbeat_interval_seconds": 20}, "heartbeat_interval_seconds"),
        ({"max_poll_interval_seconds": 10}, "max_poll_interval_seconds"),
        ({"security_protocol": "SASL_SSL"}, "sasl_username"),
        ({"sasl_username": "u"}, "security_protocol"),
        ({"ssl_cafile": "ca.pem"}, "security_protocol"),
        ({"security_protocol": "SSL", "ssl_keyfile": "key.pem"}, "ssl_certfile"),
        ({"compression": "brotli"}, "compression"),
        ({"acks": 1}, "acks"),
    ],
)
def test_a_contradiction_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        settings(**values)


def test_the_password_is_not_shown() -> None:
    secret = settings(security_protocol="SASL_SSL", sasl_username="u", sasl_password="hunter2")
    assert "hunter2" not in repr(secret)
