"""Settings of the keys."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class KeysSettings(BaseModel):
    """Where the keys are. Without them a process listens on loopback addresses only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = Field(
        None,
        description="The keyring: a file made by `aggregator keys create`. It holds no key, only what each is"
        " recognised by, and is read again when it changes.",
    )
    reread_seconds: float = Field(
        1.0, gt=0, le=60, description="Longest time until a change of the keyring is noticed."
    )
