"""The embedded log's consumer group: which consumer of this process owns which partition.

As in Kafka's eager protocol, a rebalance takes every partition from everyone and then gives them out anew:
1. each member's `on_revoked` is awaited, all at once; nothing is returned by polls meanwhile, commits work;
2. partitions are divided among those who are members now;
3. each member's `on_assigned` is awaited.
It runs in a task of its own, beside the members' polls, when a member joins or leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from broker.ports import RebalanceListener

REBALANCE_SECONDS: Final = 30.0
"""A member that takes longer over `on_revoked` loses its partitions all the same."""

_logger: Final = logging.getLogger(__name__)


class Member:
    """A consumer's part in the group.

    Attributes:
        partitions: what it owns.
        is_revoking: its partitions are being taken away; they may be committed but not read.
    """

    def __init__(self, listener: RebalanceListener, changed: Callable[[], None]) -> None:
        self.listener = listener
        self.changed = changed
        self.partitions: frozenset[int] = frozenset()
        self.is_revoking = False


class ConsumerGroup:
    """The members, in the order they joined."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._is_stale = False
        self._rebalancing: asyncio.Task[None] | None = None
        self._overdue: set[asyncio.Task[None]] = set()

    def join(self, member: Member, partitions: Iterable[int]) -> None:
        """Add a member; it gets its share of the partitions in the background."""
        self._members.append(member)
        self._partitions = sorted(partitions)
        self._request_rebalance()

    def leave(self, member: Member) -> None:
        """Remove a member; the others get its partitions in the background. Its listener is not called."""
        self._members.remove(member)
        member.partitions = frozenset()
        member.changed()
        if self._members:
            self._request_rebalance()

    def _request_rebalance(self) -> None:
        self._is_stale = True
        if self._rebalancing is None:
            self._rebalancing = asyncio.create_task(self._rebalance(), name="local-log-rebalance")

    async def _rebalance(self) -> None:
        try:
            while self._is_stale:
                await self._revoke()
                # Whoever joined or left while the others were giving up their partitions is counted in.
                self._is_stale = False
                await self._assign()
        finally:
            self._rebalancing = None

    async def _revoke(self) -> None:
        losing = [member for member in self._members if member.partitions]
        for member in losing:
            member.is_revoking = True
            member.changed()
        await self._tell(losing, lambda member: member.listener.on_revoked(member.partitions))
        for member in losing:
            member.partitions = frozenset()
            member.is_revoking = False
            member.changed()

    async def _assign(self) -> None:
        members = list(self._members)
        for index, member in enumerate(members):
            member.partitions = frozenset(self._share(index, len(members)))
            member.changed()
        await self._tell(members, lambda member: member.listener.on_assigned(member.partitions))

    def _share(self, index: int, members: int) -> list[int]:
        """Neighbouring partitions, as even as can be."""
        count = len(self._partitions)
        return self._partitions[index * count // members : (index + 1) * count // members]

    async def _tell(self, members: Iterable[Member], notice: Callable[[Member], Awaitable[None]]) -> None:
        """Call listeners, all at once. One that fails or is slow does not hold up the others."""

        async def told(member: Member) -> None:
            try:
                await notice(member)
            except Exception:
                _logger.exception("A rebalance listener failed.")

        tasks = {asyncio.create_task(told(member), name="local-log-listener") for member in members}
        if not tasks:
            return
        # An overdue call is not cancelled: it may be in the middle of a store.
        _, overdue = await asyncio.wait(tasks, timeout=REBALANCE_SECONDS)
        if overdue:
            _logger.warning(
                "%d rebalance listener(s) took longer than %g s.", len(overdue), REBALANCE_SECONDS
            )
        for task in overdue:
            self._overdue.add(task)
            task.add_done_callback(self._overdue.discard)
