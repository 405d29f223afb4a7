"""Deadlines of requests: `asyncio.timeout` in what matters."""

from __future__ import annotations

import asyncio

import pytest

from ingest_api.deadline import Deadline


async def test_what_takes_too_long_is_a_timeout_and_the_task_goes_on() -> None:
    with pytest.raises(TimeoutError), Deadline(0.001):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_what_is_done_in_time_is_left_alone() -> None:
    with Deadline(0.001):
        pass
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)
    await done.wait()


async def test_who_cancels_the_task_has_the_last_word() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        with Deadline(0.001):
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                # Overdue, and cancelled from outside before that was seen.
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise

    task = asyncio.create_task(work())
    await entered.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_error_of_the_block_is_raised_even_if_it_is_overdue() -> None:
    async def fail_once_overdue() -> None:
        with Deadline(0.001):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ZeroDivisionError from None

    with pytest.raises(ZeroDivisionError):
        await fail_once_overdue()
