"""Settings of the worker."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WorkerSettings(BaseModel):
    """How the worker reads, retries and stops."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address on which `/livez`, `/readyz` and `/metrics` are served.",
    )
    port: int = Field(8082, ge=0, le=65_535, description="Port for that; 0 picks a free one.")

    max_batch_records: int = Field(
        5_000, gt=0, le=50_000, description="Most records stored in one transaction."
    )
    poll_timeout_seconds: float = Field(
        0.5,
        gt=0,
        le=10,
        description="Longest wait for the first record of a batch; also the delay of a stop.",
    )
    backoff_min_seconds: float = Field(
        0.1, gt=0, description="First wait after a transient error; doubles each time."
    )
    backoff_max_seconds: float = Field(10.0, gt=0, description="Longest wait between two tries.")
    rejected_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="If the database refuses the content of more than this share of a batch, that is taken"
        " for an outage: the worker waits, and nothing becomes a dead letter.",
    )
    rejected_always: int = Field(
        10, ge=1, description="So many refused records of a batch never count as an outage."
    )
    heartbeat_interval_seconds: float = Field(
        5.0, gt=0, description="How often the worker says in the database that it is alive."
    )
    recheck_interval_seconds: float = Field(
        60.0,
        gt=0,
        description="How often positions are read and compared with the log anew, in case the topic was"
        " replaced without an error ever reaching the worker.",
    )
    stall_seconds: float = Field(
        120.0,
        gt=0,
        description="With lag but without progress for this long, the worker counts as stuck: `/livez` fails"
        " and its consumer is replaced. Waiting for the database is not being stuck.",
    )
    max_consumer_restarts: int = Field(
        3, ge=0, description="A worker that is still stuck after replacing its consumer so often exits."
    )
    lag_interval_seconds: float = Field(
        5.0, gt=0, description="How often the log is asked for its end offsets, for the lag in `/metrics`."
    )
    housekeeping_interval_seconds: float = Field(
        3_600.0,
        gt=0,
        description="How often partitions are created ahead of time and the embedded log is trimmed.",
    )
