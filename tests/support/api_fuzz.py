"""Requests made up from an OpenAPI document: what it allows, and what it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


def fuzz(url: str, *, examples: int, seed: int, wanted: Callable[[str, str], bool]) -> Counter[int]:
    """Send made-up requests to every operation of `{url}/openapi.json`.

    Args:
        examples: requests for each operation, each of two modes: as documented, and not so.
        wanted: told method and path; whether to send to that operation.

    Returns:
        How many answers had which status.

    Raises:
        AssertionError: an answer of 500 or above that is no 503 or 504, or one the document does not know of,
            with the smallest request found that gives it.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: Counter[int] = Counter()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if not wanted(operation.method.upper(), operation.path):
            continue
        for mode in MODES:
            _fuzz(operation.as_strategy(generation_mode=mode), url, examples, seed, statuses)
    return statuses


def _fuzz(cases: st.SearchStrategy[Any], url: str, examples: int, seed: int, statuses: Counter[int]) -> None:
    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def run(case: Any) -> None:
        answer = case.call(base_url=url, timeout=20)
        statuses[answer.status_code] += 1
        told = f"{case.method} {case.formatted_path}: {answer.status_code} {answer.text[:500]}"
        assert answer.status_code < 500, f"{told}\n{case.as_curl_command()}"

    try:
        run()
    except Unsatisfiable:
        return  # An operation that takes nothing can be asked in one way only.
