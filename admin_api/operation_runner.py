"""Carries out bulk operations on dead letters in the background, one at a time, some dead letters at a time.

How operations survive any end of this is told in `db.operation_store`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, ParamSpec, TypeVar

import structlog

from admin_api.log_view import LogView
from admin_api.log_writer import LogWriter
from broker.errors import LogFull
from db.dead_letter_status import Outcome
from db.dead_letter_store import DeadLetterStore, ReplayDraft
from db.errors import OperationLost, StoreError, StoreUnavailable
from db.operation_queries import Kind, Operation
from db.operation_store import OperationStore

LEASE_S: Final = 60.0
"""Seconds without a sign of life after which a process that replays is taken to be gone. Much longer than the
log, and the database, ever take to answer."""
_LOOK_INTERVAL_S: Final = 5.0
_LETTERS: Final = 200
_BYTES: Final = 8 * 1024 * 1024
_LONGEST_PAUSE_S: Final = 5.0
_FULL_TRIES: Final = 6
_LAST_TRIES_S: Final = 3.0
_LOGGER: Final = structlog.get_logger("admin.operations")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class OperationRunner:
    """One task, from `start` to `stop`. Holds the values of at most `_LETTERS` dead letters, or `_BYTES`.

    While the log is away it waits: it sends nothing until the log answers again.

    Args:
        is_alone: no other process works on this store, so whatever is under way at `start` was left behind.
    """

    def __init__(
        self,
        operations: OperationStore,
        letters: DeadLetterStore,
        writer: LogWriter,
        log: LogView,
        *,
        is_alone: bool = False,
    ) -> None:
        self._operations = operations
        self._letters = letters
        self._writer = writer
        self._log = log
        self._left_behind_before = monotonic() if is_alone else None
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._log_was_away = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for operations."""
        self._task = asyncio.create_task(self._run(), name="dead letter operations")

    def wake(self) -> None:
        """There is an operation to be found."""
        self._wake.set()

    async def stop(self) -> None:
        """Finish what is on its way to the log, and leave the rest to whoever comes next."""
        self._stopping.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task})
            self._task = None

    async def _run(self) -> None:
        lease = dt.timedelta(seconds=LEASE_S)
        age = lease
        if self._left_behind_before is not None:
            age = dt.timedelta(seconds=monotonic() - self._left_behind_before)
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                await asyncio.to_thread(self._letters.give_up_stale, age)
                operation = await asyncio.to_thread(self._operations.claim, stale_after=age)
                age = lease
                if operation is not None:
                    await self._carry_out(operation)
                    continue
            except StoreError as error:
                _LOGGER.warning("bulk operations wait for the database", detail=str(error))
            except Exception:
                # Whatever it is: dead letters can still be replayed one by one, and the next operation too.
                _LOGGER.exception("a bulk operation failed")
            await _wait(self._wake, _LOOK_INTERVAL_S)

    async def _carry_out(self, operation: Operation) -> None:
        step = self._replay_some
        if operation.dry_run:
            step = self._rehearse_some
        elif operation.kind is Kind.DISCARD:
            step = self._discard_some
        _LOGGER.info("bulk operation", operation=operation.id, kind=operation.kind, dry_run=operation.dry_run)
        try:
            while not self._stopping.is_set():
                if await step(operation.id):
                    await self._stored(self._operations.end, operation.id)
                    _LOGGER.info("bulk operation completed", operation=operation.id)
                    return
            await self._stored(self._operations.release, operation.id)
        except OperationLost:
            _LOGGER.info("bulk operation was cancelled or taken over", operation=operation.id)
        except StoreUnavailable:
            raise
        except Exception as error:
            sentence = f"It failed ({type(error).__name__}); the process's log says more."
            await self._stored(self._operations.end, operation.id, error=sentence)
            raise

    async def _rehearse_some(self, operation_id: int) -> bool:
        return await self._stored(self._operations.rehearse, operation_id)

    async def _discard_some(self, operation_id: int) -> bool:
        return await self._stored(self._operations.discard, operation_id, most_letters=_LETTERS)

    async def _replay_some(self, operation_id: int) -> bool:
        if not await self._log_is_there(operation_id):
            return False
        taken = await self._stored(
            self._operations.take, operation_id, most_letters=_LETTERS, most_bytes=_BYTES
        )
        outcomes = await self._send(taken.drafts)
        self._log_was_away = any(outcome is Outcome.UNKNOWN for _, outcome in outcomes)
        await self._stored(self._operations.settle, operation_id, outcomes)
        return taken.finished

    async def _send(self, drafts: Sequence[ReplayDraft]) -> list[tuple[ReplayDraft, Outcome]]:
        """What became of each; all of them are on their way at once, each with an outcome of its own."""
        return list(await asyncio.gather(*(self._send_one(draft) for draft in drafts)))

    async def _send_one(self, draft: ReplayDraft) -> tuple[ReplayDraft, Outcome]:
        for number in range(_FULL_TRIES):
            outcome, error = await self._writer.send(draft)
            if not isinstance(error, LogFull) or self._stopping.is_set():
                break
            await _wait(self._stopping, _pause(number))
        return draft, outcome

    async def _log_is_there(self, operation_id: int) -> bool:
        """Wait until the log can be written to; False if stopped before."""
        tries = 0
        while not self._stopping.is_set():
            if self._writer.is_connected and not self._log_was_away:
                return True
            if self._writer.is_connected and (await self._log.state()).status == "ok":
                return True
            await self._stored(self._operations.touch, operation_id)
            await _wait(self._stopping, _pause(tries))
            tries += 1
        return False

    async def _stored(self, step: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Take a step that may be repeated until the database has taken it; once stopping, not for long."""
        loop = asyncio.get_running_loop()
        tries = 0
        give_up_at: float | None = None
        while True:
            try:
                return await asyncio.to_thread(step, *args, **kwargs)
            except StoreUnavailable as error:
                if self._stopping.is_set():
                    give_up_at = give_up_at or loop.time() + _LAST_TRIES_S
                    if loop.time() > give_up_at:
                        raise
                _LOGGER.warning("a bulk operation waits for the database", detail=str(error))
            await (asyncio.sleep(0.2) if give_up_at else _wait(self._stopping, _pause(tries)))
            tries += 1


def _pause(tries: int) -> float:
    return float(min(_LONGEST_PAUSE_S, 0.2 * 2.0 ** min(tries, 8)) * random.uniform(0.5, 1.0))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait, but return at once when the event is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
