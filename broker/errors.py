"""What can go wrong with the log.

BrokerError                     the base; the docstring is the default message
├── LogUnavailable              transport trouble: wait and try again; nothing is wrong with the data
│   └── ProduceOutcomeUnknown   the deadline passed: the records may or may not be in the log
├── LogFull                     the log or its buffer takes no more at the moment
├── RecordTooLarge              the log will never take this record
├── OffsetOutOfRange            the position is not in the log any more, or not yet
├── CommitFailed                offsets were not committed; harmless, the database position decides
├── TopicMissing                the log topic does not exist: an operator has to create it
└── LogMisconfigured            settings and log contradict each other: an operator has to change one
"""

from __future__ import annotations


class BrokerError(Exception):
    """The log reported an error."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class LogUnavailable(BrokerError):
    """The log cannot be reached at the moment; try again later."""


class ProduceOutcomeUnknown(LogUnavailable):
    """The log did not acknowledge in time; some records may be in it. Sending them again is safe."""


class LogFull(BrokerError):
    """The log takes no more records at the moment; try again later."""


class RecordTooLarge(BrokerError):
    """The log refuses a record of this size."""


class OffsetOutOfRange(BrokerError):
    """The log holds no record at this position."""

    def __init__(self, partition: int, offset: int) -> None:
        super().__init__(f"The log holds no offset {offset} in partition {partition}.")
        self.partition = partition
        self.offset = offset


class CommitFailed(BrokerError):
    """Offsets could not be committed; the position in the database stays authoritative."""


class TopicMissing(BrokerError):
    """The log topic does not exist; create it with `aggregator topics create`."""


class LogMisconfigured(BrokerError):
    """The settings and the log contradict each other."""
