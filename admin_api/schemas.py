"""The answers as the OpenAPI document describes them.

Answers are written from the store's own types, without passing through these models: listings stay cheap, and
payloads are copied as text. The tests read every answer back through them.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_MOMENT = "2026-01-31T12:00:00.123456Z"


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LogPlace(_Schema):
    """Where in the log a record was read."""

    partition: int = Field(examples=[3])
    offset: int = Field(examples=[1204])


class RecordPlace(LogPlace):
    """Where in the log a record was read, also across the log topic being recreated."""

    incarnation: int = Field(
        description="1, and one more each time the log topic was recreated.", examples=[1]
    )


class StoredEvent(_Schema):
    """An event as it was stored."""

    topic: str = Field(examples=["orders"])
    event_id: str = Field(examples=["order-1"])
    timestamp: dt.datetime = Field(description="When it occurred, in UTC.", examples=[_MOMENT])
    source: str = Field(examples=["shop"])
    payload: dict[str, Any] | None = Field(
        description="The JSON object as it was sent: key order and digits are kept. Null to a key without"
        " leave to see payloads.",
        examples=[{"total": 12.50}],
    )
    stored_at: dt.datetime = Field(examples=[_MOMENT])
    log: LogPlace


class ConflictContent(_Schema):
    """The content of the record that lost."""

    timestamp: dt.datetime
    source: str
    payload: dict[str, Any]


class Change(_Schema):
    """One place at which two contents differ."""

    path: str = Field(description="A JSON pointer (RFC 6901) into the event.", examples=["/payload/total"])
    change: Literal["changed", "added", "removed"]
    stored: Any = Field(description="The value there in the stored event; null also where there is none.")
    rejected: Any = Field(description="The same of the rejected one.")
    shortened: bool = Field(
        description="Whether a value is too large to be shown, and is the beginning of its JSON as text."
    )


class Conflict(_Schema):
    """Both contents of an identity, and how they differ."""

    stored: StoredEvent
    rejected: ConflictContent
    difference: list[Change]
    difference_complete: bool = Field(description="False if there are more changes than are shown.")


class _Page(_Schema):
    count: int = Field(description="Entries in this page.", examples=[1])
    next_cursor: str | None = Field(
        description="Give this as `cursor` for the next page; null after the last one. A page can be shorter"
        " than `limit`, or empty, and yet not be the last: it is what was found in the time for a request."
    )


class EventsPage(_Page):
    """Events, newest (last stored) first."""

    events: list[StoredEvent]


class StoryEntry(_Schema):
    """A record seen for this identity, and its verdict."""

    verdict: Literal["stored", "conflict", "dead_lettered"]
    at: dt.datetime = Field(description="When the verdict was stored.", examples=[_MOMENT])
    received_at: dt.datetime | None = Field(
        description="When the gateway took it; null for direct producers, or if unknown."
    )
    log: RecordPlace | None = Field(description="Null where retention has removed the event.")
    dead_letter_id: int | None = Field(
        description="The dead letter that keeps the record, if it is not stored."
    )
    reason: str | None = Field(description="Why it is a dead letter.")
    error: str | None = Field(description="The same as a sentence.")
    status: str | None = Field(description="What has been done about the dead letter.")
    status_changed_at: dt.datetime | None = Field(description="When; null while nothing has been done.")
    status_changed_by: str | None = Field(description="Who did it.")
    replays: int | None = Field(description="How often the dead letter was replayed.")
    parent_id: int | None = Field(description="The dead letter whose replay this record was.")


class EventWithStory(_Schema):
    """An event and the verdict of every record of its identity that is still known.

    Duplicates are counted by topic (`/topics`), and not remembered one by one.
    """

    event: StoredEvent | None = Field(description="Null if it was never stored, or removed by retention.")
    story: list[StoryEntry] = Field(description="In the order of the verdicts.")
    story_complete: bool = Field(
        description="False if there are too many dead letters; the oldest are left out."
    )


class _Counts(_Schema):
    received: int = Field(
        description="Records given a verdict: the sum of the four below.", examples=[40_684]
    )
    unique_processed: int = Field(description="Events stored.", examples=[33_903])
    duplicate_dropped: int = Field(
        description="Records with an identity and a content that are stored already.", examples=[6_781]
    )
    conflicting: int = Field(
        description="Records with a stored identity but another content; kept as dead letters.", examples=[0]
    )
    dead_lettered: int = Field(
        description="Records that are no valid event; kept as dead letters.", examples=[0]
    )


class Database(_Schema):
    kind: Literal["postgresql", "sqlite"]
    version: str = Field(examples=["15.18"])


class Broker(_Schema):
    """The log. Its trouble does not fail the request: what depends on it is null."""

    status: Literal["ok", "unavailable", "topic_missing"]
    log_topic: str = Field(examples=["events"])
    partitions: int | None = Field(examples=[6])
    detail: str | None = Field(description="A sentence, if the status is not `ok`.")


class RetentionProgress(_Schema):
    """How far retention is with events, or with identities."""

    removed: int = Field(description="How many were ever removed.", examples=[0])
    before_at: dt.datetime | None = Field(
        description="What was stored before this moment is being removed, or gone; null if nothing ever was."
    )
    is_complete: bool = Field(description="Whether all of it is gone.")
    updated_at: dt.datetime | None = Field(description="When retention was last at it.")


class Retention(_Schema):
    """What is no longer stored because of its age. Counts go on holding it."""

    events: RetentionProgress
    identities: RetentionProgress = Field(
        description="A copy of an event whose identity was removed is stored as a new event."
    )


class Stats(_Counts):
    """The whole system in figures. Counts are exact and cumulative; they survive restarts."""

    topics: list[str] = Field(description="Topics with stored events, in order; the first 1,000.")
    topics_active: int = Field(description="How many topics have stored events.", examples=[1])
    queue_depth: int | None = Field(
        description="Records in the log not yet given a verdict; null if the log cannot be reached. At 0, the"
        " counts hold every record that was in the log when this request began.",
        examples=[0],
    )
    workers: int = Field(description="Workers that are alive.", examples=[1])
    retention: Retention
    uptime_seconds: float = Field(description="Since this process started.", examples=[86_400.5])
    database: Database
    broker: Broker


class TopicStats(_Counts):
    topic: str | None = Field(
        description="Null for records whose topic could not be read.", examples=["orders"]
    )
    first_stored_at: dt.datetime | None = Field(examples=[_MOMENT])
    last_stored_at: dt.datetime | None = Field(examples=[_MOMENT])


class TopicsPage(_Page):
    """Topics in the order of their names."""

    topics: list[TopicStats]


class Gap(_Schema):
    """Offsets that never got a verdict, because the log no longer held them."""

    id: int
    log_topic: str
    partition: int
    incarnation: int = Field(description="The incarnation that began after the gap.")
    from_offset: int
    to_offset: int | None = Field(description="Exclusive; null where it cannot be known.")
    reason: str = Field(description="`expired`, `truncated` or `recreated`.", examples=["expired"])
    detected_at: dt.datetime
    explanation: str = Field(
        description="What is missing and why, in words.",
        examples=[
            "Partition 3: offsets 10 up to 15 (5 in all) never got a verdict, because the log's retention"
            " removed them before a worker had read them. Found at 2026-01-31 12:00:00 UTC; incarnation 2"
            " began."
        ],
    )


class PartitionStats(_Schema):
    partition: int
    incarnation: int | None = Field(description="Null before the first verdict, as the next three.")
    next_offset: int | None = Field(description="The next offset that will get a verdict.")
    owner: str | None = Field(description="The worker that stored the last batch.")
    last_commit: dt.datetime | None = Field(description="When it did.", examples=[_MOMENT])
    beginning_offset: int | None = Field(
        description="The first offset the log holds; null if the log cannot be reached, as the next two."
    )
    end_offset: int | None = Field(description="The next offset the log will assign.")
    lag: int | None = Field(description="Records in the log not yet given a verdict.")
    gaps: int = Field(description="How often offsets were lost before they got a verdict: see `/gaps`.")
    last_gap: Gap | None


class Partitions(_Schema):
    """Every partition that has a position or is in the log."""

    partitions: list[PartitionStats]
    broker: Broker


class GapsPage(_Page):
    """Gaps, newest first."""

    gaps: list[Gap]


class DeadLetterPlace(RecordPlace):
    topic: str = Field(description="The log topic.", examples=["events"])


class DeadLetterSummary(_Schema):
    """A record that is not stored as an event."""

    id: int
    reason: str = Field(examples=["invalid_json"])
    error: str = Field(examples=["The text is not valid JSON (line 1, column 2)."])
    status: Literal["pending", "replaying", "replayed", "replay_unknown", "discarded"] = Field(
        description="`replay_unknown`: a replay was begun, and whether its record is in the log is not known;"
        " to replay it again is safe."
    )
    topic: str | None = Field(description="The event's topic, where it could be read.")
    event_id: str | None
    log: DeadLetterPlace
    received_at: dt.datetime | None
    created_at: dt.datetime
    value_bytes: int | None = Field(description="Size of the record's value; null for a record without one.")
    parent_id: int | None = Field(
        description="The dead letter whose replay this record was, as its header `replay_of` says."
    )
    replays: int = Field(description="How often it was replayed.", examples=[0])
    status_changed_at: dt.datetime | None = Field(description="Null while nothing was done about it.")
    status_changed_by: str | None = Field(description="Who did it.", examples=["ann"])
    operation_id: int | None = Field(
        description="The bulk operation that changed the status last, if it was one."
    )


class DeadLettersPage(_Page):
    """Dead letters without their bytes, newest first."""

    dead_letters: list[DeadLetterSummary]


class OriginalBytes(_Schema):
    """Bytes as they are in the log."""

    size: int
    text: str | None = Field(description="Null where the bytes are not UTF-8.")
    base64: str


class Header(_Schema):
    key: str
    value: OriginalBytes | None


class DeadLetter(DeadLetterSummary):
    """A dead letter with the record's original bytes."""

    record_timestamp_ms: int = Field(description="The log's own clock, as it was in the record.")
    record_timestamp: dt.datetime | None = Field(
        description="The same, where it is a moment of the calendar."
    )
    key: OriginalBytes | None
    value: OriginalBytes | None
    headers: list[Header] | None = Field(description="In their order; null if they cannot be read.")
    redacted: bool = Field(
        description="Whether the key may not see payloads; then key, value, headers, replayed_value and"
        " conflict are null, whatever they are."
    )
    replayed_value: OriginalBytes | None = Field(
        description="What the last replay sent in place of the value, if it was edited."
    )
    children: list[int] = Field(
        description="Dead letters that came of replaying this one, the newest first; at most 100."
    )
    conflict: Conflict | None = Field(
        description="For a conflict whose stored event is still there: both contents and their difference."
    )


class DeadLetterGroup(_Schema):
    """The dead letters of one reason."""

    reason: str
    count: int
    statuses: dict[str, int] = Field(description="How many by status; only statuses that occur.")
    oldest: dt.datetime
    newest: dt.datetime
    newest_id: int = Field(description="An example.")


class DeadLetterGroups(_Schema):
    """Dead letters by reason, the largest group first."""

    groups: list[DeadLetterGroup]


class DeadLetterFilter(_Schema):
    reason: str | None
    topic: str | None
    status: Literal["pending", "replay_unknown"]
    since: dt.datetime | None
    until: dt.datetime | None


class DeadLetterOperation(_Schema):
    """A replay or discard of all dead letters that matched a filter when it was created."""

    id: int
    kind: Literal["replay", "discard"]
    filter: DeadLetterFilter
    limit: int | None
    dry_run: bool
    status: Literal["waiting", "running", "completed", "cancelled", "failed"]
    matching: int | None = Field(
        description="How many matched when it was created; null if counting took too long."
    )
    done: int = Field(description="Replayed or discarded; in a dry run, what would be.")
    skipped: int = Field(description="Records without a value: there is nothing to replay.")
    failed: int = Field(description="Not taken by the log; they are what they were.")
    unknown: int = Field(description="Perhaps replayed; they are `replay_unknown` now.")
    progress: float = Field(description="From 0 to 1.", examples=[0.25])
    requested_by: str
    created_at: dt.datetime
    updated_at: dt.datetime
    finished_at: dt.datetime | None
    error: str | None = Field(description="A sentence, if it failed.")


class DeadLetterOperationsPage(_Page):
    """Bulk operations, newest first."""

    operations: list[DeadLetterOperation]


class AuditEntry(_Schema):
    """One thing that somebody did."""

    id: int
    at: dt.datetime
    actor: str = Field(description="Who, as the header X-Actor claimed.", examples=["ann"])
    action: str = Field(examples=["dead_letter.replay"])
    dead_letter_id: int | None
    operation_id: int | None
    detail: dict[str, Any] | None


class AuditPage(_Page):
    """Audit entries, newest first."""

    entries: list[AuditEntry]
