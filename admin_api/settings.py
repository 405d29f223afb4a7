"""Settings of the admin API."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AdminSettings(BaseModel):
    """How the admin API listens, and how much one request may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8081, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    query_timeout_seconds: float = Field(
        10.0,
        gt=0,
        lt=20,
        description="Seconds after which a database query is stopped and the answer is 504.",
    )
    max_page_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1,
        description="Payload bytes after which a page of events ends early; its cursor leads on.",
    )
    export_chunk_events: int = Field(
        1_000, ge=1, le=10_000, description="Most events an export reads, and holds in memory, at once."
    )
    worker_liveness_seconds: float = Field(
        30.0, gt=0, description="Seconds since its last heartbeat for which a worker counts as alive."
    )
    log_timeout_seconds: float = Field(
        2.0, gt=0, description="Seconds to wait for the log before answering without it."
    )
    publish_timeout_seconds: float = Field(
        5.0,
        gt=0,
        le=30,
        description="Seconds to wait for the log to acknowledge a replayed record; after that its outcome is"
        " unknown, and it may be replayed again.",
    )
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds between not being ready any more and closing the port, when the process is"
        " stopped: as long as whatever sends it requests may take to notice.",
    )
    shutdown_grace_seconds: float = Field(
        10.0, gt=0, description="Seconds that requests in flight have to finish when the process is stopped."
    )
