"""What the key of a request lets it publish."""

from __future__ import annotations

import structlog

from access.keyring import KeyRefused, Keyring
from access.keys import Key, Role
from access.quota import Quota, QuotaExceeded, Quotas
from ingest_api.refusal import TOPIC_NOT_ALLOWED, EventError, Reason, Refused


class Permit:
    """One request's leave to publish. What is counted stays counted, whatever becomes of the request: it is
    the work that is limited."""

    __slots__ = ("_key", "_quota")

    def __init__(self, key: Key, quota: Quota) -> None:
        self._key = key
        self._quota = quota

    def require_quota(self) -> None:
        """Raise Refused (`quota_exceeded`) unless something may be sent now."""
        try:
            self._quota.require()
        except QuotaExceeded as exceeded:
            raise _over_quota(exceeded) from None

    def take_bytes(self, size: int) -> None:
        """Count the body of a request. Raises Refused (`quota_exceeded`), and then counts nothing."""
        self.require_quota()
        self._quota.take_bytes(size)

    def take_events(self, count: int) -> None:
        """Count the events of a body that was counted."""
        self._quota.take_events(count)

    def topic_error(self, index: int, topic: str, event_id: str) -> EventError | None:
        """Why an event may not be published; None if it may."""
        if self._key.may_publish_to(topic):
            return None
        return EventError(index, event_id, TOPIC_NOT_ALLOWED, "This key may not publish to this topic.")


class Permits:
    """Gives requests their permits. Makes none up where there are no keys: then everything may be published.

    Args:
        keyring: None without keys.
    """

    def __init__(self, keyring: Keyring | None = None) -> None:
        self._keyring = keyring
        self._quotas = Quotas()

    def of(self, authorization: str | None) -> Permit | None:
        """The permit that the `Authorization` header gives; None without keys.

        Raises:
            Refused: no key, not a valid one, not one for publishing, or its quota is used up.
        """
        if self._keyring is None:
            return None
        try:
            key = self._keyring.find(authorization)
        except KeyRefused as refused:
            reason = Reason.KEY_MISSING if refused.missing else Reason.KEY_NOT_VALID
            raise Refused(reason, refused.message) from None
        structlog.contextvars.bind_contextvars(key_id=key.id)
        if key.role is not Role.INGEST:
            raise Refused(Reason.ROLE_NOT_ALLOWED, "This key reads; to publish, use an ingest key.")
        permit = Permit(key, self._quotas.of(key))
        permit.require_quota()
        return permit


def _over_quota(exceeded: QuotaExceeded) -> Refused:
    return Refused(
        Reason.QUOTA_EXCEEDED,
        f"This key may send {exceeded.limit}, and has. Nothing of this request was accepted; send it again"
        " after the time in Retry-After.",
        retry_after=exceeded.retry_after,
    )
