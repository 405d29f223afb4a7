"""One history of migrations, on both stores, up and down, from the command line and from the code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.event import listens_for

from alembic import command
from db.engine import open_engine
from db.errors import SchemaMismatch
from db.migrations import REVISIONS, check, current, directory, head, upgrade
from db.partitions import ensure_partitions
from db.settings import DatabaseSettings
from tests.support.postgres import Server, drop_database

_REPOSITORY = Path(__file__).resolve().parents[2]
_MODULES_NOT_AT_START = ("alembic", "mako")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = open_engine(DatabaseSettings.model_validate({"url": url}), application_name="test")
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def alembic(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """What the `alembic` command works with, except for its logging."""
    monkeypatch.setenv("AGGREGATOR_DATABASE__URL", empty_url)
    config = Config()
    config.set_main_option("script_location", str(directory()))
    return config


def run_alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=_REPOSITORY,
        env={**os.environ, "AGGREGATOR_DATABASE__URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def tables(engine: Engine) -> set[str]:
    with closing(engine.connect()) as connection:
        return set(inspect(connection).get_table_names())


def test_the_revisions_that_checking_knows_are_those_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(directory()))
    scripts = ScriptDirectory.from_config(config)

    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == REVISIONS
    assert scripts.get_current_head() == head()


def test_the_command_line_upgrades_the_database_of_the_environment(empty_url: str) -> None:
    done = run_alembic(empty_url, "upgrade", "head")

    assert done.returncode == 0, done.stdout + done.stderr
    with opened(empty_url) as engine:
        check(engine)


def test_models_and_migrations_agree_after_up_down_and_up(empty_url: str, alembic: Config) -> None:
    command.upgrade(alembic, "head")
    command.check(alembic)
    command.downgrade(alembic, "base")
    command.upgrade(alembic, "head")
    with opened(empty_url) as engine:
        ensure_partitions(engine, days_ahead=1)

    command.check(alembic)


def test_going_down_leaves_nothing_behind(empty_url: str, alembic: Config) -> None:
    with opened(empty_url) as engine:
        upgrade(engine)
        ensure_partitions(engine, days_ahead=1)
        command.downgrade(alembic, "base")

        assert tables(engine) == {"alembic_version"}
        if engine.dialect.name == "postgresql":
            with closing(engine.connect()) as connection:
                assert connection.scalar(text("SELECT count(*) FROM pg_sequences")) == 0


def test_the_command_line_says_which_variable_is_missing() -> None:
    done = run_alembic("", "upgrade", "head")

    assert done.returncode != 0
    assert "AGGREGATOR_DATABASE__URL" in done.stderr + done.stdout


def test_an_empty_database_is_told_apart_and_upgraded(empty_url: str) -> None:
    with opened(empty_url) as engine:
        assert current(engine) is None
        with pytest.raises(SchemaMismatch, match=r"no schema yet.*aggregator db upgrade"):
            check(engine)

        upgrade(engine)
        upgrade(engine)

        assert current(engine) == head()
        check(engine)


def test_a_newer_schema_is_left_alone_and_named(empty_url: str) -> None:
    with opened(empty_url) as engine:
        upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            connection.execute(text("UPDATE schema_compatibility SET oldest = '9998'"))

        for refused in (check, upgrade):
            with pytest.raises(SchemaMismatch, match=r"9999.*newer version"):
                refused(engine)


def test_a_newer_schema_that_still_has_everything_is_worked_with_and_left_alone(empty_url: str) -> None:
    with opened(empty_url) as engine:
        upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

        check(engine)
        upgrade(engine)

        assert current(engine) == "9999"


def test_sqlite_is_upgraded_in_one_transaction(tmp_path: Path) -> None:
    # The transaction is all that keeps the migrations of other processes out.
    with opened(f"sqlite:///{tmp_path / 'empty.db'}") as engine:
        committed = []

        @listens_for(engine, "commit")
        def remember(connection: Connection) -> None:
            if inspect(connection).has_table("alembic_version"):
                committed.append(connection.scalar(text("SELECT version_num FROM alembic_version")))

        upgrade(engine)

    assert committed == [head()]


def test_any_number_of_processes_may_upgrade_at_once(empty_url: str) -> None:
    program = (
        "import sys; from db.engine import open_engine; from db.migrations import upgrade;"
        " from db.settings import DatabaseSettings;"
        " upgrade(open_engine(DatabaseSettings(url=sys.argv[1]), application_name='test'))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, empty_url], cwd=_REPOSITORY, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()

    with opened(empty_url) as engine:
        check(engine)


def test_any_number_of_threads_may_upgrade_at_once(empty_url: str) -> None:
    def run() -> None:
        with opened(empty_url) as engine:
            upgrade(engine)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run) for _ in range(4)]:
            done.result(60)

    with opened(empty_url) as engine:
        check(engine)


@pytest.mark.postgres
def test_a_database_that_cannot_hold_every_text_is_refused(postgres_server: Server) -> None:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE aggregator_latin1"
            " ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    try:
        url = make_url(postgres_server.url).set(database="aggregator_latin1")
        with (
            opened(url.render_as_string(hide_password=False)) as engine,
            pytest.raises(SchemaMismatch, match=r"LATIN1.*ENCODING 'UTF8'"),
        ):
            upgrade(engine)
    finally:
        drop_database(postgres_server.url, "aggregator_latin1")


def test_checking_does_not_load_the_migration_tool() -> None:
    program = "import sys, db.migrations; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program, *_MODULES_NOT_AT_START],
        cwd=_REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.postgres
def test_an_index_whose_building_was_interrupted_is_built_anew(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGGREGATOR_DATABASE__URL", empty_postgres_url)
    config = Config()
    config.set_main_option("script_location", str(directory()))
    command.upgrade(config, "0002")
    name = "dead_letters_status_id_idx"
    with opened(empty_postgres_url) as engine:
        with engine.begin() as connection:
            # What an interrupted CREATE INDEX CONCURRENTLY leaves behind: the name, taken and unusable.
            connection.execute(text(f"CREATE INDEX {name} ON dead_letters (id)"))
            connection.execute(
                text(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")
            )
        upgrade(engine)
        with closing(engine.connect()) as connection:
            invalid = connection.scalar(text("SELECT count(*) FROM pg_index WHERE NOT indisvalid"))
            columns = {i["name"]: i["column_names"] for i in inspect(connection).get_indexes("dead_letters")}
    assert invalid == 0
    assert columns[name] == ["status", "id"]
