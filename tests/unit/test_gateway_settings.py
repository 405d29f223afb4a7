"""Settings of the gateway that contradict each other are refused with the way out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ingest_api.settings import IngestSettings


def test_defaults_agree_with_each_other() -> None:
    settings = IngestSettings()
    assert settings.max_body_bytes == 10 * 1024 * 1024
    assert settings.max_events == 10_000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_in_flight_bytes": 5_000}, "could never be taken"),
        ({"publish_timeout_seconds": 60}, "could cut off a request"),
        ({"shutdown_grace_seconds": 1}, "could cut off a request"),
        ({"max_events": 0}, "max_events"),
        ({"retry_after_seconds": 0}, "retry_after_seconds"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_contradictions_are_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        IngestSettings(**changes)
