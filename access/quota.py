"""How much a key may send."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from access.keys import Key


class QuotaExceeded(Exception):
    """The key has sent what it may for now.

    Attributes:
        retry_after: seconds until it may send again.
        limit: in words, such as `1,000 events per second`.
    """

    def __init__(self, retry_after: float, limit: str) -> None:
        super().__init__(limit)
        self.retry_after = retry_after
        self.limit = limit


class Allowance:
    """So much per second, saved up for one second at most.

    A request is let in as long as anything is left and then takes all it needs, if need be in advance: what
    is larger than a second's worth gets in too, and whoever sends it waits the longer afterwards. Over time
    the rate is exact.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._left = rate
        self._at = clock()

    def wait(self) -> float:
        """Seconds until something is left; 0 if there is now."""
        now = self._clock()
        self._left = min(self.rate, self._left + (now - self._at) * self.rate)
        self._at = now
        return 0.0 if self._left > 0 else -self._left / self.rate

    def take(self, amount: float) -> None:
        """Count what was let in."""
        self._left -= amount


class Quota:
    """The limits of one ingest key at this process."""

    def __init__(self, key: Key, clock: Callable[[], float] = monotonic) -> None:
        self.limits = (key.events_per_second, key.bytes_per_second)
        self._events = None if key.events_per_second is None else Allowance(key.events_per_second, clock)
        self._bytes = None if key.bytes_per_second is None else Allowance(key.bytes_per_second, clock)

    def require(self) -> None:
        """Raise QuotaExceeded unless something may be sent now."""
        for allowance, what in ((self._events, "events"), (self._bytes, "bytes")):
            if allowance is not None and (wait := allowance.wait()):
                raise QuotaExceeded(wait, f"{allowance.rate:,g} {what} per second")

    def take_events(self, count: int) -> None:
        if self._events is not None:
            self._events.take(count)

    def take_bytes(self, size: int) -> None:
        if self._bytes is not None:
            self._bytes.take(size)


class Quotas:
    """The quotas of all keys; a key whose limits were changed starts anew."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._quotas: dict[str, Quota] = {}

    def of(self, key: Key) -> Quota:
        """The quota of a key, the same for all its requests."""
        quota = self._quotas.get(key.id)
        if quota is None or quota.limits != (key.events_per_second, key.bytes_per_second):
            quota = self._quotas[key.id] = Quota(key, self._clock)
        return quota
