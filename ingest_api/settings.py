"""Settings of the gateway."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class IngestSettings(BaseModel):
    """How the gateway listens, and what it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    max_body_bytes: int = Field(
        10 * 1024 * 1024, ge=1_024, description="Largest request body in bytes, after decompression."
    )
    max_events: int = Field(10_000, ge=1, le=100_000, description="Most events in one request.")
    max_in_flight_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1_024,
        description="Request bodies held at once, in bytes, over all requests; beyond it the answer is 503.",
    )
    read_timeout_seconds: float = Field(
        10.0, gt=0, description="Seconds a client has to send its request body."
    )
    publish_timeout_seconds: float = Field(10.0, gt=0, description="Seconds the log has to acknowledge.")
    retry_after_seconds: float = Field(
        1.0, gt=0, description="Seconds a refused client is asked to wait (503)."
    )
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds between not being ready any more and closing the port, when the process is"
        " stopped: as long as whatever sends it requests may take to notice.",
    )
    shutdown_grace_seconds: float = Field(
        22.0, gt=0, description="Seconds that requests in flight have to finish when the gateway is stopped."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_in_flight_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_in_flight_bytes ({self.max_in_flight_bytes:,}) is smaller than max_body_bytes"
                f" ({self.max_body_bytes:,}), so the largest request could never be taken; raise the former"
                " or lower the latter"
            )
        if self.shutdown_grace_seconds < self.read_timeout_seconds + self.publish_timeout_seconds:
            raise ValueError(
                f"shutdown_grace_seconds ({self.shutdown_grace_seconds:g}) is shorter than"
                f" read_timeout_seconds ({self.read_timeout_seconds:g}) plus publish_timeout_seconds"
                f" ({self.publish_timeout_seconds:g}), so a stop could cut off a request;"
                " raise the former or lower the latter two"
            )
        return self
