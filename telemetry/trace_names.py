"""Names in traces: spans and attributes, as OpenTelemetry's conventions for messaging have them."""

from __future__ import annotations

from typing import Final

SEND: Final = "send"
POLL: Final = "poll"
PROCESS: Final = "process"
"""Operations; a span is named `{operation} {log topic}`."""

OPERATION_TYPES: Final = {SEND: "send", POLL: "receive", PROCESS: "process"}

SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION_NAME: Final = "messaging.destination.name"
DESTINATION_PARTITION_ID: Final = "messaging.destination.partition.id"
CONSUMER_GROUP_NAME: Final = "messaging.consumer.group.name"
BATCH_MESSAGE_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
"""Headers of HTTP requests and of records: W3C Trace Context."""
