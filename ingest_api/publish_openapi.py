"""What the API description says about `POST /publish`, whose body FastAPI does not read itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from events.errors import InvalidCode
from events.event import MAX_DEPTH, MAX_EVENT_BYTES, MAX_INTEGER_DIGITS, MAX_NAME_BYTES, MAX_YEAR, MIN_YEAR
from ingest_api.refusal import MAX_LISTED_ERRORS, STATUS, Reason
from ingest_api.settings import IngestSettings
from telemetry.problem import PROBLEM_MEDIA_TYPE, Problem, problem_document

_EVENT: Final = {
    "topic": "shop.orders",
    "event_id": "order-1001",
    "timestamp": "2026-01-31T12:00:00+01:00",
    "source": "web",
    "payload": {"total": 19.9, "items": 2},
}
_REQUEST_ID: Final = "5a0f4ad21e9b4c5f8d8f0a9d2f6c7b31"
_EVENT_ERROR: Final = {
    "index": 1,
    "event_id": "order-1002",
    "code": "schema",
    "message": "`source` is missing.",
}

_DETAILS: Final[dict[Reason, str]] = {
    Reason.INVALID_ENCODING: "The bytes are not valid UTF-8 (at byte 17).",
    Reason.INVALID_JSON: "The text is not valid JSON (line 1, column 9): Expecting value.",
    Reason.READ_TIMEOUT: "The request body did not arrive in time. Send fewer events per request.",
    Reason.EVENT_TOO_LARGE: f"The event is 300,000 bytes; the limit is {MAX_EVENT_BYTES:,} bytes.",
    Reason.BODY_TOO_LARGE: "The request body is too large. Send fewer events per request.",
    Reason.TOO_MANY_EVENTS: "The request has too many events. Send them in several requests.",
    Reason.UNSUPPORTED_CONTENT_TYPE: "The body must be JSON and say so: add the header content-type:"
    " application/json.",
    Reason.UNSUPPORTED_CONTENT_ENCODING: "Send the body as it is or with content-encoding: gzip.",
    Reason.SCHEMA: "The body must be one event (an object) or an array of events.",
    Reason.NO_EVENT_ACCEPTABLE: "`source` is missing.",
    Reason.KEY_MISSING: "A key is needed: send it in the header `Authorization: Bearer KEY`.",
    Reason.KEY_NOT_VALID: "The key is not one of ours.",
    Reason.ROLE_NOT_ALLOWED: "This key reads; to publish, use an ingest key.",
    Reason.TOPIC_NOT_ALLOWED: "This key may not publish to this topic.",
    Reason.QUOTA_EXCEEDED: "This key may send 1,000 events per second, and has. Nothing of this request was"
    " accepted; send it again after the time in Retry-After.",
    Reason.OVERLOADED: "The gateway holds as many requests as it may at the moment. Nothing of this request"
    " was accepted; send it again later.",
    Reason.DRAINING: "The gateway is draining and takes no requests; send it again.",
    Reason.LOG_FULL: "The log is full at the moment; some events may be in it.",
    Reason.LOG_UNAVAILABLE: "The log cannot be reached at the moment; some events may be in it.",
    Reason.OUTCOME_UNKNOWN: "The log did not acknowledge in time; some events may be in it.",
}
_WHEN: Final = {
    400: "The body is not JSON, or not UTF-8. Nothing was accepted.",
    401: "There is no key, or it is not a valid one. Nothing was accepted. Only where the gateway has keys.",
    403: "The key is not for publishing, or for none of these topics; or, without keys, the request was meant"
    " for another host or sent by a web page. Nothing was accepted.",
    408: "The body did not arrive in time. Nothing was accepted.",
    413: "The body, its number of events, or every event in it is over a limit.",
    415: "The content type or encoding is not taken. Nothing was accepted.",
    422: "No event is acceptable; `errors` says why, for each.",
    429: "The quota of the key is used up for the moment. Nothing was accepted.",
    503: "The gateway or the log takes no more at the moment, or the log did not acknowledge. Some events may"
    " be in the log: sending all of them again with the same ids is always safe.",
}


class EventErrorDocument(BaseModel):
    """Why one event of the request was not accepted."""

    index: int = Field(description="Its place in the request, from 0.")
    event_id: str | None = Field(description="Its id, where that could be read.")
    code: InvalidCode | Literal["topic_not_allowed"] = Field(description="The rule it breaks.")
    message: str = Field(description="What is wrong with it, for people.")


class PublishDocument(BaseModel):
    """The valid events are durable in the log."""

    accepted: int = Field(description="Events that were valid.")
    queued: int = Field(description="Events the log has acknowledged; equal to `accepted`.")
    rejected: int = Field(description="Events that were not valid.")
    errors: list[EventErrorDocument] | None = Field(
        description=f"Null if nothing was rejected; else one entry each, the first {MAX_LISTED_ERRORS:,}."
    )
    errors_omitted: int | None = Field(
        None, description="Rejected events not listed in `errors`; absent if all are."
    )


def publish_operation(settings: IngestSettings) -> dict[str, Any]:
    """The keyword arguments of the route: description, request body, and every answer with an example."""
    return {
        "description": (
            "Publish one event, or an array of events. The answer comes after the log has made every accepted"
            " event durable. Events are identified by `(topic, event_id)` and stored once, so sending again"
            " is always safe."
        ),
        "responses": {
            200: {
                "model": PublishDocument,
                "description": "All events are durable in the log.",
                "content": _example({"accepted": 2, "queued": 2, "rejected": 0, "errors": None}),
            },
            207: {
                "model": PublishDocument,
                "description": "Some events are not valid; the others are durable in the log.",
                "content": _example({"accepted": 1, "queued": 1, "rejected": 1, "errors": [_EVENT_ERROR]}),
            },
            **{status: _problem_answer(status) for status in sorted(set(STATUS.values()))},
        },
        "openapi_extra": {"requestBody": _request_body(settings), "parameters": _header_parameters()},
    }


def event_schema() -> dict[str, Any]:
    """The JSON Schema of an event, with the limits that JSON Schema can express; the rest in words."""
    name = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_BYTES}
    controls = "no control characters"
    return {
        "type": "object",
        "title": "Event",
        "description": f"At most {MAX_EVENT_BYTES:,} bytes of JSON. Text must be free of NUL (\\u0000) and"
        " of lone surrogates.",
        "additionalProperties": False,
        "required": list(_EVENT),
        "properties": {
            "topic": {**name, "description": f"1 to {MAX_NAME_BYTES} bytes of UTF-8, {controls}."},
            "event_id": {
                **name,
                "description": f"Unique within the topic; 1 to {MAX_NAME_BYTES} bytes of UTF-8, {controls}.",
            },
            "timestamp": {
                "type": "string",
                "format": "date-time",
                "description": "When it occurred: RFC 3339 with an offset, years"
                f" {MIN_YEAR} to {MAX_YEAR}; stored in UTC.",
            },
            "source": {**name, "description": f"Who says so; 1 to {MAX_NAME_BYTES} bytes of UTF-8."},
            "payload": {
                "type": "object",
                "description": f"Your own data. Nested at most {MAX_DEPTH} deep; integers of at most"
                f" {MAX_INTEGER_DIGITS:,} digits; numbers within the range of a double.",
            },
        },
        "examples": [_EVENT],
    }


def _request_body(settings: IngestSettings) -> dict[str, Any]:
    event = event_schema()
    array = {"type": "array", "items": event, "minItems": 1, "maxItems": settings.max_events}
    return {
        "required": True,
        "description": f"One event, or an array of 1 to {settings.max_events:,} events; at most"
        f" {settings.max_body_bytes:,} bytes. `content-encoding: gzip` is taken; the limit then holds for the"
        " unpacked body.",
        "content": {
            "application/json": {
                "schema": {"oneOf": [event, array]},
                "examples": {
                    "one event": {"value": _EVENT},
                    "an array": {"value": [_EVENT, {**_EVENT, "event_id": "order-1002"}]},
                },
            }
        },
    }


def _header_parameters() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": description,
        }
        for name, description in (
            ("traceparent", "W3C trace context; passed on with every event."),
            ("x-request-id", "Your id for this request; returned, and in the log of the gateway."),
        )
    ]


def _problem_answer(status: int) -> dict[str, Any]:
    reasons = [reason for reason in Reason if STATUS[reason] == status]
    answer: dict[str, Any] = {
        "description": f"{_WHEN[status]} `code` is one of: {', '.join(reasons)}.",
        "content": {
            PROBLEM_MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/ProblemDocument"},
                "examples": {reason.value: {"value": _problem_example(reason)} for reason in reasons},
            }
        },
    }
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        answer["headers"] = {
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before a retry."}
        }
    return answer


def _problem_example(reason: Reason) -> dict[str, Any]:
    errors = {"rejected": 1, "errors": [_EVENT_ERROR]} if reason is Reason.NO_EVENT_ACCEPTABLE else None
    return problem_document(
        Problem(STATUS[reason], reason.value, _DETAILS[reason], extra=errors), _REQUEST_ID
    )


def _example(document: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"example": document}}
