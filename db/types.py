"""Column types that mean the same on Postgres and on SQLite."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import BigInteger, Dialect, Integer, LargeBinary, Text, TypeDecorator, cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine, UserDefinedType

from events.event import microseconds, moment

BigSerial = BigInteger().with_variant(Integer, "sqlite")
"""A 64-bit key that SQLite, too, assigns by itself (it does so for INTEGER only)."""


class Identity16(TypeDecorator[bytes]):
    """Sixteen bytes. On Postgres a `uuid`: of fixed width, so index entries are a quarter smaller."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        return dialect.type_descriptor(LargeBinary(16))

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> Any:
        if value is not None and dialect.name == "postgresql":
            return uuid.UUID(bytes=value)
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> bytes | None:
        return value.bytes if isinstance(value, uuid.UUID) else value


class UtcTime(TypeDecorator[dt.datetime]):
    """A moment in UTC. On Postgres `timestamptz`; on SQLite whole microseconds since 1970, which sort."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return microseconds(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        if isinstance(value, dt.datetime):
            return value.astimezone(dt.UTC)
        return None if value is None else moment(value)


class RawJson(UserDefinedType[str]):
    """JSON text kept as it was sent (`json`, not `jsonb`): white space, key order and digits survive, and
    reading never parses it. Always read as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"

    def column_expression(self, colexpr: ColumnElement[Any]) -> ColumnElement[str]:
        return cast(colexpr, Text)
