"""Where dead letters are dealt with: one by one, or many in the background."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final
from uuid import uuid4

import structlog
from starlette.concurrency import run_in_threadpool

from admin_api.log_view import LogView
from admin_api.log_writer import LogWriter
from admin_api.operation_runner import OperationRunner
from broker.errors import BrokerError
from broker.ports import Producer
from db.dead_letter_queries import DeadLetterSummary
from db.dead_letter_status import Outcome
from db.dead_letter_store import DeadLetterStore, ReplayDraft
from db.engine import Engine
from db.errors import QueryTimedOut, StoreUnavailable, UnknownDeadLetter
from db.event_filter import DeadLetterFilter
from db.operation_queries import Kind, Operation
from db.operation_store import OperationStore
from db.queries import StoreQueries

_NOTING_S: Final = 3.0
"""Seconds for which the outcome of a replay is tried to be noted."""
_LOGGER: Final = structlog.get_logger("admin.dead_letters")


class ReplayFailed(Exception):
    """The log did not acknowledge the record; the dead letter says what is known of it."""

    def __init__(self, outcome: Outcome, cause: BrokerError | None) -> None:
        super().__init__(str(cause))
        self.outcome = outcome
        self.cause = cause


class DeadLetterOffice:
    """Replays and discards. Works between `start` and `stop`; needs neither log nor database to start.

    Methods raise the StoreErrors of `db.dead_letter_store` and `db.operation_store`.
    """

    def __init__(
        self,
        engine: Engine,
        producer: Producer,
        queries: StoreQueries,
        log: LogView,
        *,
        publish_timeout: float,
        is_alone: bool = False,
    ) -> None:
        """
        Args:
            engine: for writing; the caller closes it.
            publish_timeout: seconds to wait for an acknowledgement.
            is_alone: no other process works on this store.
        """
        self._queries = queries
        self._letters = DeadLetterStore(engine)
        self._operations = OperationStore(engine, f"admin-{uuid4().hex}")
        self._writer = LogWriter(producer, timeout=publish_timeout)
        self._runner = OperationRunner(self._operations, self._letters, self._writer, log, is_alone=is_alone)
        self._under_way: set[asyncio.Task[DeadLetterSummary]] = set()

    async def start(self) -> None:
        """Begin to connect to the log, and to carry out operations, those left behind included."""
        self._writer.start()
        self._runner.start()

    async def stop(self) -> None:
        """Finish what is on its way, bounded in time; operations are left to whoever comes next."""
        await self._runner.stop()
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._writer.stop()

    async def replay(
        self, dead_letter_id: int, *, actor: str, edited: bytes | None = None
    ) -> DeadLetterSummary:
        """Send a record through the log again; returns once the log has acknowledged it and that is noted.

        Args:
            edited: a valid event, to be sent in place of the record's value.

        Raises:
            UnknownDeadLetter, DeadLetterRefused: nothing was sent.
            LogUnavailable: there is no log at the moment; nothing was changed.
            ReplayFailed: not acknowledged; the status says what is known.
            StoreUnavailable: the status may be `replaying` for a while, and is `replay_unknown` then.
        """
        self._writer.require_connected()
        # In a task of its own: once begun it goes on, whether or not somebody still waits for the answer.
        task = asyncio.create_task(
            self._replay(dead_letter_id, actor, edited), name=f"replay dead letter {dead_letter_id}"
        )
        self._under_way.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def discard(self, dead_letter_id: int, *, actor: str) -> DeadLetterSummary:
        """Nothing more will be done about it."""
        await run_in_threadpool(self._letters.discard, dead_letter_id, actor=actor)
        return await self._summary(dead_letter_id)

    async def create_operation(
        self, kind: Kind, chosen: DeadLetterFilter, *, actor: str, most: int | None, dry_run: bool
    ) -> Operation:
        """Note an operation on everything that matches, to be carried out from now on."""
        matching: int | None = None
        try:
            matching = await run_in_threadpool(self._queries.dead_letters.count, chosen)
        except QueryTimedOut:
            _LOGGER.info("an operation is on more dead letters than can be counted in time")
        operation = await run_in_threadpool(
            self._operations.create,
            kind,
            chosen,
            actor=actor,
            most=most,
            dry_run=dry_run,
            matching=matching,
        )
        self._runner.wake()
        return operation

    async def cancel_operation(self, operation_id: int, *, actor: str) -> Operation:
        """Stop an operation; what it has done stays done."""
        return await run_in_threadpool(self._operations.cancel, operation_id, actor=actor)

    def _finished(self, task: asyncio.Task[DeadLetterSummary]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits, if somebody does

    async def _replay(self, dead_letter_id: int, actor: str, edited: bytes | None) -> DeadLetterSummary:
        draft = await run_in_threadpool(
            self._letters.begin_replay, dead_letter_id, actor=actor, edited=edited
        )
        outcome, error = await self._writer.send(draft)
        await self._note(draft, outcome)
        if outcome is not Outcome.ACKNOWLEDGED:
            raise ReplayFailed(outcome, error)
        return await self._summary(dead_letter_id)

    async def _note(self, draft: ReplayDraft, outcome: Outcome) -> None:
        deadline = monotonic() + _NOTING_S
        while True:
            try:
                await run_in_threadpool(self._letters.end_replay, draft, outcome)
            except StoreUnavailable:
                if monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    async def _summary(self, dead_letter_id: int) -> DeadLetterSummary:
        found = await run_in_threadpool(self._queries.dead_letters.summary, dead_letter_id)
        if found is None:
            raise UnknownDeadLetter
        return found
