"""The configuration: environment variables `AGGREGATOR_…`, checked as a whole before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from access.settings import KeysSettings
from admin_api.settings import AdminSettings
from broker.settings import KafkaSettings, LocalLogSettings
from db.settings import DatabaseSettings, RetentionSettings
from ingest_api.settings import IngestSettings
from stream_worker.settings import WorkerSettings
from telemetry.settings import TelemetrySettings

PREFIX = "AGGREGATOR_"
_FILE_SUFFIX = "_file"


class SettingsError(Exception):
    """The configuration cannot be used; the text says which variable to change."""


class _Environment(EnvSettingsSource):
    """Environment variables; `NAME_FILE` gives the value of `NAME` as a file's content, for secrets."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        variables = dict(super()._load_env_vars())
        for name, path in list(variables.items()):
            if not name.startswith(PREFIX.lower()) or not name.endswith(_FILE_SUFFIX) or path is None:
                continue
            plain = name.removesuffix(_FILE_SUFFIX)
            if plain in variables:
                raise SettingsError(f"Both {plain.upper()} and {name.upper()} are set; remove one of them.")
            try:
                variables[plain] = Path(path).read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{name.upper()} names a file that cannot be read: {error}.") from None
            del variables[name]
        return variables


class ClientSettings(BaseModel):
    """What the commands that call a gateway or an admin API need."""

    model_config = {"frozen": True, "extra": "forbid"}

    key: SecretStr | None = Field(
        None,
        description="The key that `aggregator send` (an ingest key) or `aggregator dead-letters` (of a viewer"
        " or operator) sends along.",
    )

    def secret(self) -> str | None:
        """The key itself."""
        return None if self.key is None else self.key.get_secret_value()


class LogOutputSettings(BaseModel):
    """What the process says about itself."""

    model_config = {"frozen": True, "extra": "forbid"}

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: console on a terminal, one JSON object per line elsewhere."
    )


class Settings(BaseSettings):
    """Everything that can be set, one group per component."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    kafka: KafkaSettings | None = Field(None, description="The log of the production roles.")
    local_log: LocalLogSettings = Field(LocalLogSettings(), description="The log of the embedded mode.")
    database: DatabaseSettings | None = Field(None, description="The store of the production roles.")
    ingest: IngestSettings = Field(IngestSettings(), description="The gateway.")
    worker: WorkerSettings = Field(WorkerSettings(), description="The worker.")
    admin: AdminSettings = Field(AdminSettings(), description="The admin API.")
    retention: RetentionSettings = Field(
        RetentionSettings(), description="How long events and identities are kept."
    )
    keys: KeysSettings = Field(KeysSettings(), description="Keys, of every process that listens.")
    client: ClientSettings = Field(ClientSettings(), description="Commands that are clients.")
    telemetry: TelemetrySettings = Field(TelemetrySettings(), description="Metrics, of every process.")
    log: LogOutputSettings = Field(LogOutputSettings(), description="The process's own log lines.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    def require_kafka(self) -> KafkaSettings:
        """Raises SettingsError if the log's address is not set."""
        if self.kafka is None:
            raise SettingsError(
                f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS is not set; set it to your brokers' addresses, for example"
                " broker-1:9092,broker-2:9092, or run `aggregator dev`, which needs no configuration."
            )
        return self.kafka

    def require_database(self) -> DatabaseSettings:
        """Raises SettingsError if the store's address is not set."""
        if self.database is None:
            raise SettingsError(
                f"{PREFIX}DATABASE__URL is not set; set it to your database, for example"
                " postgresql://user:password@host/name, or run `aggregator dev`, which needs none."
            )
        return self.database


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the configuration.

    Raises:
        SettingsError: with one sentence per problem.
    """
    names = os.environ if environ is None else environ
    unknown = [
        name
        for name in names
        if name.startswith(PREFIX)
        and not name.startswith(f"{PREFIX}TEST_")
        and _group(name) not in Settings.model_fields
    ]
    if unknown:
        groups = ", ".join(f"{PREFIX}{group.upper()}__…" for group in Settings.model_fields)
        raise SettingsError(
            f"Unknown setting(s) {', '.join(sorted(unknown))}; settings start with {groups}."
            " Correct the name, or remove it."
        )
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(e) for e in error.errors())) from None


def _group(name: str) -> str:
    return name.removeprefix(PREFIX).partition("__")[0].lower()


def _sentence(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    variable = PREFIX + "__".join(location).upper()
    if error["type"] == "extra_forbidden":
        return f"{variable} is not a setting; correct the name, or remove it."
    if error["type"] == "missing":
        return f"{variable} is not set, but other settings of {location[0]} are; set it."
    message = error["msg"].removeprefix("Value error, ")
    return f"{variable}: {message[:1].upper()}{message[1:]}{'' if message.endswith('.') else '.'}"


def settings_or_exit() -> Settings:
    """The configuration; on any problem the process ends with status 2 and the sentences on stderr."""
    try:
        return load_settings()
    except SettingsError as error:
        typer.echo(f"aggregator: {error}", err=True)
        raise typer.Exit(2) from None
