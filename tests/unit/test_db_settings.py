"""Where the database is: what is accepted, what is refused, and that passwords stay hidden."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from db.engine import open_engine, transaction
from db.errors import StoreUnavailable
from db.settings import DatabaseSettings

SECRET = "s3cr3t-w0rd"


def settings(url: str, **other: Any) -> DatabaseSettings:
    return DatabaseSettings.model_validate({"url": url, **other})


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_name_of_postgres_leads_to_our_driver(scheme: str) -> None:
    url = settings(f"{scheme}://user:{SECRET}@host:5433/name?sslmode=require").sqlalchemy_url

    assert url.render_as_string(hide_password=False) == (
        f"postgresql+psycopg://user:{SECRET}@host:5433/name?sslmode=require"
    )


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://user:{SECRET}@host/name",
        f"postgresql+asyncpg://user:{SECRET}@host/name",
        f"{SECRET}",
        f"postgresql://user:{SECRET}@host:port/name",
        "sqlite://",
        "sqlite:///:memory:",
        f"sqlite:///file.db?mode=memory&{SECRET}",
    ],
)
def test_another_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValidationError, match="sqlite:///PATH") as refused:
        settings(url)

    assert SECRET not in str(refused.value)


def test_timeouts_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="lock_timeout_seconds must not be above"):
        settings("sqlite:///x.db", lock_timeout_seconds=5, statement_timeout_seconds=4)
    with pytest.raises(ValidationError, match="lock_timeout_seconds must not be above"):
        settings("sqlite:///x.db", statement_timeout_seconds=12, transaction_timeout_seconds=11)


def test_no_repr_and_no_log_shows_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = settings(f"postgresql://user:{SECRET}@127.0.0.1:9/name?password={SECRET}&sslpassword={SECRET}")
    engine = open_engine(given, application_name="test")

    shown = (
        repr(given)
        + str(given)
        + given.model_dump_json()
        + repr(engine)
        + repr(engine.pool)
        + str(engine.url)
    )
    assert SECRET not in shown + caplog.text


def test_every_setting_is_described() -> None:
    assert [name for name, field in DatabaseSettings.model_fields.items() if not field.description] == []


def test_a_missing_directory_is_reported_as_such(tmp_path: Path) -> None:
    engine = open_engine(settings(f"sqlite:///{tmp_path}/missing/store.db"), application_name="test")
    with pytest.raises(StoreUnavailable, match="unable to open database file"), transaction(engine):
        pass
