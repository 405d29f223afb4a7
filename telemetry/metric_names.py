"""Every metric there is: names, labels, buckets. The reference page is made from this list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

OTHER: Final = "other"
"""The label value for whatever would make the number of series unbounded."""

Role = Literal["gateway", "worker", "admin"]
_EVERY: Final[tuple[Role, ...]] = ("gateway", "worker", "admin")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as Prometheus names it.

    Attributes:
        buckets: upper bounds of a histogram, ascending, without infinity.
        roles: whose `/metrics` has it; the embedded mode has all.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    roles: tuple[Role, ...] = _EVERY


_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

BUILD_INFO: Final = Metric(
    "aggregator_build_info", "gauge", "Always 1; says which build runs.", ("version", "revision")
)
HTTP_REQUEST_DURATION: Final = Metric(
    "http_server_request_duration_seconds",
    "histogram",
    "Time to answer HTTP requests. The route is its template, `other` where no route matched; the status is"
    " 499 where the client left before it was answered.",
    ("http_request_method", "http_route", "http_response_status_code"),
    _SECONDS,
)

EVENTS_ACCEPTED: Final = Metric(
    "aggregator_events_accepted_total",
    "counter",
    "Events the log has acknowledged.",
    roles=("gateway",),
)
EVENTS_REJECTED: Final = Metric(
    "aggregator_events_rejected_total",
    "counter",
    "Events found invalid, by the code their sender was told.",
    ("code",),
    roles=("gateway",),
)
REQUESTS_REFUSED: Final = Metric(
    "aggregator_requests_refused_total",
    "counter",
    "Publish requests refused as a whole, by the code of the problem document.",
    ("code",),
    roles=("gateway",),
)
EVENT_SIZE: Final = Metric(
    "aggregator_event_size_bytes",
    "histogram",
    "Size of accepted events, in bytes of their JSON.",
    buckets=(128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 65_536, 262_144),
    roles=("gateway",),
)
PRODUCE_DURATION: Final = Metric(
    "aggregator_produce_duration_seconds",
    "histogram",
    "Time until the log acknowledged the events of a request, or did not.",
    buckets=_SECONDS,
    roles=("gateway",),
)
PRODUCE_ERRORS: Final = Metric(
    "aggregator_produce_errors_total",
    "counter",
    "Requests whose events the log did not acknowledge.",
    ("error_type",),
    roles=("gateway",),
)
PRODUCER_IN_FLIGHT: Final = Metric(
    "aggregator_producer_in_flight_events",
    "gauge",
    "Events handed to the log client and not acknowledged yet.",
    roles=("gateway",),
)

EVENTS_PROCESSED: Final = Metric(
    "aggregator_events_processed_total",
    "counter",
    "Records that got a verdict: stored, duplicate, conflict or dead_lettered.",
    ("verdict",),
    roles=("worker",),
)
TOPIC_EVENTS_PROCESSED: Final = Metric(
    "aggregator_topic_events_processed_total",
    "counter",
    "The same by topic. Topics beyond the set number, and records without a topic, are `other`.",
    ("topic", "verdict"),
    roles=("worker",),
)
BATCH_SIZE: Final = Metric(
    "aggregator_batch_size_records",
    "histogram",
    "Records stored in one transaction.",
    buckets=(1, 10, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000),
    roles=("worker",),
)
BATCH_DURATION: Final = Metric(
    "aggregator_batch_duration_seconds",
    "histogram",
    "Time a batch took in each stage: decode, store (the database transaction), commit (Kafka offsets).",
    ("stage",),
    _SECONDS,
    roles=("worker",),
)
EVENT_LATENCY: Final = Metric(
    "aggregator_event_latency_seconds",
    "histogram",
    "From the gateway receiving an event to its verdict being durable. Records of direct producers do not"
    " say when they were received and are not in it.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0),
    roles=("worker",),
)
LAG_RECORDS: Final = Metric(
    "aggregator_consumer_lag_records",
    "gauge",
    "Records in the log without a verdict, of the partitions this worker is assigned.",
    ("partition",),
    roles=("worker",),
)
LAG_SECONDS: Final = Metric(
    "aggregator_consumer_lag_seconds",
    "gauge",
    "How long the oldest record without a verdict has been in the log, at most; 0 where there is none.",
    ("partition",),
    roles=("worker",),
)
LAST_COMMIT: Final = Metric(
    "aggregator_consumer_last_commit_timestamp_seconds",
    "gauge",
    "Unix time at which offsets were committed last; absent before the first commit.",
    roles=("worker",),
)
ASSIGNED_PARTITIONS: Final = Metric(
    "aggregator_consumer_assigned_partitions",
    "gauge",
    "Partitions assigned to this worker.",
    roles=("worker",),
)
REBALANCES: Final = Metric(
    "aggregator_consumer_rebalances_total",
    "counter",
    "Times the group gave this worker partitions anew.",
    roles=("worker",),
)
RETRIES: Final = Metric(
    "aggregator_retries_total",
    "counter",
    "Times the worker waited before trying again, by what went wrong.",
    ("error_type",),
    roles=("worker",),
)
DB_POOL_CONNECTIONS: Final = Metric(
    "aggregator_db_pool_connections",
    "gauge",
    "Connections to the database, `idle` or `used`.",
    ("state",),
    roles=("worker", "admin"),
)
DEAD_LETTERS: Final = Metric(
    "aggregator_dead_letters_total",
    "counter",
    "Dead letters written, by reason; losing records of conflicts included.",
    ("reason",),
    roles=("worker",),
)
DEAD_LETTERS_PENDING: Final = Metric(
    "aggregator_dead_letters_pending",
    "gauge",
    "Dead letters nobody has dealt with, of the whole deployment, counted up to 100,000; absent while the"
    " database cannot say.",
    roles=("worker", "admin"),
)

METRICS: Final = (
    BUILD_INFO,
    HTTP_REQUEST_DURATION,
    EVENTS_ACCEPTED,
    EVENTS_REJECTED,
    REQUESTS_REFUSED,
    EVENT_SIZE,
    PRODUCE_DURATION,
    PRODUCE_ERRORS,
    PRODUCER_IN_FLIGHT,
    EVENTS_PROCESSED,
    TOPIC_EVENTS_PROCESSED,
    BATCH_SIZE,
    BATCH_DURATION,
    EVENT_LATENCY,
    LAG_RECORDS,
    LAG_SECONDS,
    LAST_COMMIT,
    ASSIGNED_PARTITIONS,
    REBALANCES,
    RETRIES,
    DB_POOL_CONNECTIONS,
    DEAD_LETTERS,
    DEAD_LETTERS_PENDING,
)
