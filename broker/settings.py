"""Settings of the two logs."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from events.event import MAX_EVENT_BYTES

RECORD_OVERHEAD_BYTES: Final = 8 * 1024
"""Room for what surrounds an event in the log: key, headers, framing of record and batch."""
SMALLEST_BATCH_BYTES: Final = MAX_EVENT_BYTES + RECORD_OVERHEAD_BYTES
"""A batch has to be able to hold the largest event alone."""


class LocalLogSettings(BaseModel):
    """The durable log in SQLite of the embedded mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partitions: int = Field(
        default=4, ge=1, le=1_024, description="Partitions of a new log; an existing log keeps its number."
    )
    max_bytes: int | None = Field(
        default=None,
        gt=0,
        description="The log counts as full above this many bytes; unset: no limit but the disk.",
    )
    retention_hours: float = Field(
        default=168,
        gt=0,
        description="Hours a record is kept after it was appended; only read ones are removed.",
    )


class KafkaSettings(BaseModel):
    """The log on a Kafka cluster.

    Sizes and times that contradict each other are refused here; what only the topic can tell is checked by
    `start` of the producer and the consumer (`LogMisconfigured`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: str = Field(
        min_length=1, description="Brokers to connect to first, `host:port`, separated by commas."
    )
    topic: str = Field(
        default="events",
        pattern=r"^[a-zA-Z0-9._-]{1,249}$",
        description="The log topic. It has to exist: `aggregator topics create`.",
    )
    group_id: str = Field(default="aggregator", min_length=1, description="Consumer group of the workers.")
    client_id: str = Field(
        default="aggregator", min_length=1, description="Name this client gives itself towards the brokers."
    )

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How connections to the brokers are secured."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="How to log in, where the security protocol starts with SASL."
    )
    sasl_username: str | None = Field(default=None, description="User name for SASL.")
    sasl_password: SecretStr | None = Field(default=None, description="Password for SASL.")
    ssl_cafile: str | None = Field(
        default=None, description="File with the certificate authorities to trust; unset: the system's."
    )
    ssl_certfile: str | None = Field(
        default=None, description="File with the client certificate, where the brokers ask for one."
    )
    ssl_keyfile: str | None = Field(default=None, description="File with the client certificate's key.")

    compression: Literal["gzip", "lz4", "zstd", "snappy"] | None = Field(
        default="snappy",
        description="Compression of produced batches; unset: none. snappy takes the least time, zstd saves"
        " the most; lz4 and gzip run at their slowest level in this client.",
    )
    max_batch_bytes: int = Field(
        default=1_000_000,
        ge=SMALLEST_BATCH_BYTES,
        description="Largest batch the producer makes, in bytes before compression. At most the topic's"
        " `max.message.bytes`.",
    )
    max_buffer_bytes: int = Field(
        default=64 * 1024 * 1024,
        gt=0,
        description="Bytes of records the producer holds unacknowledged; above that the log counts as full.",
    )
    max_partition_fetch_bytes: int = Field(
        default=4 * 1024 * 1024,
        gt=0,
        description="Bytes fetched at once from a partition. At least the topic's `max.message.bytes`.",
    )
    max_fetch_bytes: int = Field(
        default=32 * 1024 * 1024, gt=0, description="Bytes fetched at once from a broker, all partitions."
    )

    request_timeout_seconds: float = Field(
        default=60, gt=0, description="A request to a broker fails after this long without an answer."
    )
    produce_timeout_seconds: float = Field(
        default=30,
        gt=0,
        description="A batch that the brokers have not acknowledged by then is given up, not tried again.",
    )
    session_timeout_seconds: float = Field(
        default=45, gt=0, description="A worker that is silent for this long loses its partitions."
    )
    rebalance_timeout_seconds: float = Field(
        default=30,
        gt=0,
        description="Time for a worker to finish its batch when partitions are redistributed.",
    )
    heartbeat_interval_seconds: float = Field(
        default=3, gt=0, description="Time between two signs of life of a worker."
    )
    max_poll_interval_seconds: float = Field(
        default=3_600,
        gt=0,
        description="A worker that has not polled for this long leaves the group. Long, because a worker that"
        " waits for its database does not poll; one that is stuck notices by itself.",
    )
    metadata_max_age_seconds: float = Field(
        default=30, gt=0, description="New partitions of the topic are noticed within this time."
    )
    start_timeout_seconds: float = Field(
        default=20, gt=0, description="Time for the first connection at start."
    )
    stop_timeout_seconds: float = Field(
        default=10, gt=0, description="Time for finishing what is in flight at stop."
    )
    commit_timeout_seconds: float = Field(
        default=10,
        gt=0,
        description="Time for committing offsets; the position in the database is safe anyway.",
    )
    reconnect_after_seconds: float = Field(
        default=60,
        gt=0,
        description="A consumer that no broker has answered for this long connects anew.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.bootstrap_servers.strip(" ,"):
            raise ValueError("bootstrap_servers is blank; name at least one broker as host:port.")
        self._sizes_agree()
        self._times_agree()
        self._security_agrees()
        return self

    def _sizes_agree(self) -> None:
        if self.max_buffer_bytes < self.max_batch_bytes:
            raise ValueError(
                f"max_buffer_bytes ({self.max_buffer_bytes:,}) is less than max_batch_bytes"
                f" ({self.max_batch_bytes:,}); raise it, or one batch would never fit."
            )
        if self.max_partition_fetch_bytes < self.max_batch_bytes:
            raise ValueError(
                f"max_partition_fetch_bytes ({self.max_partition_fetch_bytes:,}) is less than max_batch_bytes"
                f" ({self.max_batch_bytes:,}); raise it, or batches would be produced that cannot be read."
            )
        if self.max_fetch_bytes < self.max_partition_fetch_bytes:
            raise ValueError(
                f"max_fetch_bytes ({self.max_fetch_bytes:,}) is less than max_partition_fetch_bytes"
                f" ({self.max_partition_fetch_bytes:,}); raise it."
            )

    def _times_agree(self) -> None:
        if self.heartbeat_interval_seconds * 3 > self.session_timeout_seconds:
            raise ValueError(
                f"heartbeat_interval_seconds ({self.heartbeat_interval_seconds:g}) is more than a third of"
                f" session_timeout_seconds ({self.session_timeout_seconds:g}); lower it."
            )
        if not self.rebalance_timeout_seconds < self.session_timeout_seconds < self.request_timeout_seconds:
            raise ValueError(
                "rebalance_timeout_seconds < session_timeout_seconds < request_timeout_seconds has to hold;"
                f" they are {self.rebalance_timeout_seconds:g}, {self.session_timeout_seconds:g} and"
                f" {self.request_timeout_seconds:g}."
            )
        if self.max_poll_interval_seconds < self.rebalance_timeout_seconds:
            raise ValueError(
                f"max_poll_interval_seconds ({self.max_poll_interval_seconds:g}) is less than"
                f" rebalance_timeout_seconds ({self.rebalance_timeout_seconds:g}); raise it."
            )

    def _security_agrees(self) -> None:
        uses_sasl = self.security_protocol.startswith("SASL")
        if uses_sasl and (not self.sasl_username or self.sasl_password is None):
            raise ValueError(
                f"security_protocol is {self.security_protocol}, so sasl_username and sasl_password"
                " have to be set."
            )
        if not uses_sasl and (self.sasl_username is not None or self.sasl_password is not None):
            raise ValueError(
                f"sasl_username or sasl_password is set but security_protocol is {self.security_protocol};"
                " choose SASL_SSL (or SASL_PLAINTEXT), or remove them."
            )
        files = self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile
        if not self.security_protocol.endswith("SSL") and any(file is not None for file in files):
            raise ValueError(
                f"An ssl_ file is set but security_protocol is {self.security_protocol};"
                " choose SSL or SASL_SSL, or remove it."
            )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile is set without ssl_certfile; set both.")
