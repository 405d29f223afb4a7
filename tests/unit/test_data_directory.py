"""The data directory of the embedded mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.data_directory import locked
from cli.process import StartFailure
from db.engine import open_engine
from db.migrations import current
from db.settings import DatabaseSettings


@pytest.mark.parametrize("name", ["what?", "a?b=c", "hash#", "100 %", "100%25", "naïve ☃", "a&b=c", "quote'"])
def test_the_store_is_where_it_was_said_whatever_the_name(name: str, tmp_path: Path) -> None:
    directory = tmp_path / name
    directory.mkdir()

    engine = open_engine(DatabaseSettings.sqlite(directory / "store.db"), application_name="test")
    assert current(engine) is None
    engine.dispose()

    assert (directory / "store.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(StartFailure, match="cannot be used: Not a directory"),
        locked(tmp_path / "file" / "data"),
    ):
        pass
