"""Whatever is sent to the HTTP interfaces, no answer is a 500, and nothing good is lost."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from tests.support.api_fuzz import fuzz
from tests.support.processes import aggregator, free_port, wait_ready, wait_until

EXAMPLES = int(os.environ.get("AGGREGATOR_TEST_FUZZ_EXAMPLES", "10"))
SEED = int(os.environ.get("AGGREGATOR_TEST_FUZZ_SEED", "1"))


@pytest.mark.timeout(3_600)
def test_made_up_requests_are_answered_and_the_good_events_among_them_stored(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("dev", "--port", str(port), "--data-dir", str(tmp_path / "data"))
    event = {
        "topic": "fuzz",
        "event_id": "before",
        "timestamp": "2026-01-01T00:00:00Z",
        "source": "test",
        "payload": {},
    }
    with aggregator("dev", *command, log=tmp_path / "dev.log") as process:
        wait_ready(process, url)
        httpx.post(f"{url}/publish", json=event).raise_for_status()
        # Some dead letters and a conflict for the routes that deal with them.
        httpx.post(f"{url}/publish", json={**event, "payload": {"other": 1}}).raise_for_status()

        statuses = fuzz(url, examples=EXAMPLES, seed=SEED, wanted=lambda method, path: True)

        httpx.post(f"{url}/publish", json={**event, "event_id": "after"}).raise_for_status()

        def settled() -> bool:
            stats = httpx.get(f"{url}/stats", timeout=20).raise_for_status().json()
            return bool(stats["queue_depth"] == 0)

        wait_until(settled, 60, "a verdict for everything", process)
        for event_id in ("before", "after"):
            assert httpx.get(f"{url}/events/fuzz/{event_id}").status_code == 200
        assert process.terminate() == 0
    assert statuses[200] > 0
    assert statuses[422] > 0
