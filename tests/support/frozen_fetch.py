"""The worker role in which aiokafka's own fetch task freezes, and no exception ever says so.

    python -m tests.support.frozen_fetch COUNT

The first COUNT consumers freeze, each after it has fetched something. Configured by the environment, as the
role is.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aiokafka.consumer.consumer
from aiokafka.consumer.fetcher import Fetcher

from cli.main import app

_to_freeze = int(sys.argv[1])


class FreezingFetcher(Fetcher):  # type: ignore[misc]
    made = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        FreezingFetcher.made += 1
        self._freezes = FreezingFetcher.made <= _to_freeze
        self._has_fetched = False
        super().__init__(*arguments, **options)

    async def _proc_fetch_request(self, *arguments: Any) -> Any:
        if self._freezes and self._has_fetched:
            await asyncio.Event().wait()
        answer = await super()._proc_fetch_request(*arguments)
        # Before the worker can take them: this is the first moment it could be told.
        self._has_fetched = self._has_fetched or bool(self._records)
        return answer


if __name__ == "__main__":
    aiokafka.consumer.consumer.Fetcher = FreezingFetcher
    sys.argv = ["aggregator", "worker"]
    app()
