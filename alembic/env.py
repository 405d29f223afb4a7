"""Runs migrations: on the connection that `db.migrations` hands over, or, for the `alembic` command, on the
database that AGGREGATOR_DATABASE__URL names."""

from __future__ import annotations

import os
import re
from logging.config import fileConfig
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Column, Connection, Index
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from alembic import context
from db.engine import open_engine
from db.migrations import exclusively
from db.models import Base
from db.settings import DatabaseSettings
from db.types import RawJson

URL_VARIABLE = "AGGREGATOR_DATABASE__URL"

# Partitions of `events` come and go by themselves; they are not part of the models.
PARTITION = re.compile(r"events_(default|p\d{8})")


def include_name(name: str | None, kind: str, _: Any) -> bool:
    return kind != "table" or name is None or PARTITION.fullmatch(name) is None


def include_object(found: SchemaItem, _: str | None, kind: str, __: bool, ___: SchemaItem | None) -> bool:
    # An index of a kind that only Postgres has is nowhere else.
    is_of_postgres = isinstance(found, Index) and found.dialect_options["postgresql"]["using"]
    return not is_of_postgres or context.get_context().dialect.name == "postgresql"


def compare_type(
    _: Any,
    __: Column[Any],
    ___: Column[Any],
    inspected: TypeEngine[Any],
    declared: TypeEngine[Any],
) -> bool | None:
    """Whether the types differ; None leaves the decision to alembic."""
    if isinstance(declared, RawJson):
        return str(inspected) != "JSON"
    return None


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=include_name,
        include_object=include_object,
        compare_type=compare_type,
        render_as_batch=connection.dialect.name == "sqlite",
        # Our engine begins SQLite transactions itself, so there, too, a migration happens as a whole.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_from_command_line() -> None:
    if context.is_offline_mode():
        raise CommandError("Migrations need a connection: they look at what the database holds.")
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise CommandError(
            f"Set {URL_VARIABLE} to the database's URL, for example postgresql://HOST/DATABASE."
        )
    if context.config.config_file_name is not None:
        fileConfig(context.config.config_file_name, disable_existing_loggers=False)
    engine = open_engine(DatabaseSettings(url=url), application_name="alembic")
    try:
        with engine.connect() as connection, exclusively(connection):
            run(connection)
    finally:
        engine.dispose()


given: Connection | None = context.config.attributes.get("connection")
if given is None:
    run_from_command_line()
else:
    run(given)
