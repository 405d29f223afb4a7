"""Settings of what every process tells about itself in figures."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TelemetrySettings(BaseModel):
    """What metrics say, and how much they may cost. Traces are set by the standard `OTEL_*` variables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str = Field(
        "unknown",
        min_length=1,
        description="The commit this was built from, shown in `aggregator_build_info`; images set it.",
    )
    max_topics: int = Field(
        50,
        ge=0,
        le=1_000,
        description="Topics that get series of their own; the rest are counted together under `other`.",
    )
    dead_letters_interval_seconds: float = Field(
        15.0,
        gt=0,
        description="How often the pending dead letters are counted in the database, however often"
        " `/metrics` is read.",
    )
