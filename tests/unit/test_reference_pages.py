"""The generated pages of the documentation say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "generate", Path(__file__).resolve().parents[2] / "docs" / "generate.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("name", sorted(generate.pages()))
def test_generated_page_is_up_to_date(name: str) -> None:
    written = (generate.REPOSITORY / name).read_text()
    assert written == generate.pages()[name], "run `make docs` and commit what it writes"
