"""Settings of the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

if TYPE_CHECKING:
    # Imported where it is needed: the gateway reads settings, and has no use for a database library.
    from sqlalchemy.engine import URL

_POSTGRES_SCHEMES: Final = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
_SQLITE_SCHEMES: Final = frozenset({"sqlite", "sqlite+pysqlite"})
_URL_FORMS: Final = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:///PATH"


class DatabaseSettings(BaseModel):
    """How to reach the store, and how long to wait for it. Times are seconds."""

    # A bad URL may hold a password, so errors must not repeat what was given.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: SecretStr = Field(description=f"Where the database is: {_URL_FORMS}.")
    pool_size: int = Field(
        default=5, ge=1, le=100, description="Most connections one process opens (Postgres)."
    )
    connect_timeout_seconds: int = Field(default=5, ge=2, le=60, description="Longest wait for a connection.")
    lock_timeout_seconds: float = Field(default=5, gt=0, le=15, description="Longest wait for a lock.")
    statement_timeout_seconds: float = Field(
        default=10, gt=0, le=18, description="Longest time one statement may take (Postgres)."
    )
    transaction_timeout_seconds: float = Field(
        default=15,
        gt=0,
        lt=20,
        description="Longest time a whole transaction may take, commit included; then its connection"
        " is cut (Postgres). Below 20, so that a worker never outlives its place in the consumer group.",
    )
    pool_recycle_seconds: int = Field(
        default=1800, ge=10, description="Age at which a connection is replaced (Postgres)."
    )

    @classmethod
    def sqlite(cls, path: Path) -> DatabaseSettings:
        """The settings for a SQLite file, whatever its name."""
        return cls.model_validate({"url": f"sqlite:///{quote(str(path))}"})

    @field_validator("url")
    @classmethod
    def _normalised(cls, value: SecretStr) -> SecretStr:
        return SecretStr(_normalise(value.get_secret_value()).render_as_string(hide_password=False))

    @model_validator(mode="after")
    def _ordered(self) -> DatabaseSettings:
        if (
            not self.lock_timeout_seconds
            <= self.statement_timeout_seconds
            <= self.transaction_timeout_seconds
        ):
            raise ValueError(
                "lock_timeout_seconds must not be above statement_timeout_seconds, nor that above"
                " transaction_timeout_seconds"
            )
        return self

    @property
    def sqlalchemy_url(self) -> URL:
        """The URL as SQLAlchemy takes it, with our driver. Its repr hides the password."""
        from sqlalchemy.engine import make_url

        return make_url(self.url.get_secret_value())


class RetentionSettings(BaseModel):
    """How long what is stored is kept. Days are whole ones, UTC; without a setting it is kept for ever."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events_days: int | None = Field(
        None, ge=1, le=36_500, description="Days an event is kept after the day it was stored on."
    )
    identities_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Days an identity is kept, the deduplication window: a copy of an event that comes later"
        " is stored as a new one. At least events_days, and longer than the log keeps records.",
    )

    @model_validator(mode="after")
    def _events_go_first(self) -> RetentionSettings:
        if self.identities_days is None:
            return self
        if self.events_days is None or self.identities_days < self.events_days:
            raise ValueError(
                "identities_days must not be below events_days, and needs it to be set: an event without its"
                " identity could be stored a second time beside itself"
            )
        return self


def _normalise(text: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"the database URL cannot be read; it must be {_URL_FORMS}") from None
    if url.drivername in _POSTGRES_SCHEMES:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in _SQLITE_SCHEMES:
        raise ValueError(f"the database must be Postgres or SQLite: {_URL_FORMS}")
    if not url.database or url.database == ":memory:" or url.query:
        raise ValueError("SQLite needs a file, without options: sqlite:///PATH")
    return url.set(drivername="sqlite")
