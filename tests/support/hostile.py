"""Input that nobody should send, and what has to become of it.

Over HTTP it is the body of a request, in the log the value of a record: the rules are the same.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from events.event import MAX_EVENT_BYTES

TOPIC = "shop.orders"
EVENT_ID = "order-1"
_TIMESTAMP = "2026-01-31T12:00:00+01:00"


def event(**changes: Any) -> dict[str, Any]:
    """An event; a field that is `...` is left out."""
    fields = {
        "topic": TOPIC,
        "event_id": EVENT_ID,
        "timestamp": _TIMESTAMP,
        "source": "web",
        "payload": {"total": 19.9},
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def with_payload(payload: str, **changes: Any) -> bytes:
    """An event around the text of a payload."""
    return encode(event(payload={}, **changes)).replace(b'"payload": {}', b'"payload": ' + payload.encode())


def with_timestamp(text: str) -> bytes:
    """An event whose timestamp is this JSON text."""
    return encode(event()).replace(encode(_TIMESTAMP), text.encode())


def with_id(text: str) -> bytes:
    """An event whose id is this JSON text."""
    return encode(event()).replace(encode(EVENT_ID), text.encode())


class Refused(NamedTuple):
    """Something that is no event.

    Attributes:
        reason: of the dead letter, if it is the value of a record.
        status, code: of the answer, if it is the body of a request.
    """

    raw: bytes
    reason: str
    status: int = 422
    code: str = "no_event_acceptable"


def _deep(depth: int) -> str:
    return '{"a":' + "[" * depth + "]" * depth + "}"


REFUSED: dict[str, Refused] = {
    "empty": Refused(b"", "invalid_json", 400, "invalid_json"),
    "white space": Refused(b" \n", "invalid_json", 400, "invalid_json"),
    "malformed": Refused(b'{"topic": ', "invalid_json", 400, "invalid_json"),
    "malformed array": Refused(b"[{}, ", "invalid_json", 400, "invalid_json"),
    "malformed element": Refused(b'[{"topic" "a"}]', "invalid_json", 400, "invalid_json"),
    "two documents": Refused(encode(event()) + encode(event()), "invalid_json", 400, "invalid_json"),
    "bad UTF-8": Refused(
        encode(event()).replace(b"web", b"w\xff"), "invalid_encoding", 400, "invalid_encoding"
    ),
    "surrogate in UTF-8": Refused(
        encode(event()).replace(b"web", b"\xed\xa0\x80"), "invalid_encoding", 400, "invalid_encoding"
    ),
    "UTF-16": Refused(json.dumps(event()).encode("utf-16"), "invalid_encoding", 400, "invalid_encoding"),
    "UTF-16 without mark": Refused(
        json.dumps(event()).encode("utf-16-le"), "invalid_json", 400, "invalid_json"
    ),
    "byte order mark": Refused(b"\xef\xbb\xbf" + encode(event()), "invalid_json", 400, "invalid_json"),
    "empty array": Refused(b"[]", "schema", 422, "schema"),
    "null": Refused(b"null", "schema", 422, "schema"),
    "number": Refused(b"17", "schema", 422, "schema"),
    "string": Refused(b'"event"', "schema", 422, "schema"),
    "empty object": Refused(b"{}", "schema"),
    "missing id": Refused(encode(event(event_id=...)), "schema"),
    "missing topic": Refused(encode(event(topic=...)), "schema"),
    "missing timestamp": Refused(encode(event(timestamp=...)), "schema"),
    "missing source": Refused(encode(event(source=...)), "schema"),
    "missing payload": Refused(encode(event(payload=...)), "schema"),
    "integer id": Refused(encode(event(event_id=17)), "schema"),
    "null topic": Refused(encode(event(topic=None)), "schema"),
    "empty id": Refused(encode(event(event_id="")), "schema"),
    "256-byte id": Refused(encode(event(event_id="x" * 256)), "schema"),
    "90 four-byte characters as id": Refused(encode(event(event_id="😀" * 90)), "schema"),
    "control character in id": Refused(encode(event(event_id="a\nb")), "schema"),
    "NUL in id": Refused(encode(event(event_id="a\0b")), "unstorable_text"),
    "NUL in topic": Refused(encode(event(topic="a\0b")), "unstorable_text"),
    "NUL in source": Refused(encode(event(source="a\0b")), "unstorable_text"),
    "NUL in nested value": Refused(encode(event(payload={"a": [{"b": "\0"}]})), "unstorable_text"),
    "NUL in nested key": Refused(encode(event(payload={"a": [{"\0": 1}]})), "unstorable_text"),
    "surrogate in id": Refused(with_id('"\\ud800"'), "unstorable_text"),
    "surrogate in payload": Refused(with_payload('{"a": "\\udfff"}'), "unstorable_text"),
    "surrogate in key": Refused(with_payload('{"\\udfff": 1}'), "unstorable_text"),
    "NaN": Refused(with_payload('{"a": NaN}'), "number_range"),
    "Infinity": Refused(with_payload('{"a": -Infinity}'), "number_range"),
    "1e400": Refused(with_payload('{"a": 1e400}'), "number_range"),
    "5,000-digit integer": Refused(with_payload(f'{{"a": {"9" * 5_000}}}'), "number_range"),
    "depth 65": Refused(with_payload('{"a":' * 65 + "1" + "}" * 65), "too_deep"),
    "depth 100,000": Refused(with_payload(_deep(100_000)), "too_deep"),
    "naive timestamp": Refused(with_timestamp('"2026-01-31T12:00:00"'), "schema"),
    "year 10000": Refused(with_timestamp('"10000-01-01T00:00:00Z"'), "schema"),
    "infinity": Refused(with_timestamp('"infinity"'), "schema"),
    "now": Refused(with_timestamp('"now"'), "schema"),
    "timestamp 1e400": Refused(with_timestamp("1e400"), "schema"),
    "integer epoch": Refused(with_timestamp("1769857200"), "schema"),
    "payload array": Refused(with_payload("[]"), "schema"),
    "payload string": Refused(with_payload('"text"'), "schema"),
    "payload null": Refused(with_payload("null"), "schema"),
    "unknown field": Refused(encode(event(priority=1)), "schema"),
    "several bad events": Refused(encode([event(event_id=1), event(topic="")]), "schema"),
    "large event": Refused(
        with_payload(json.dumps({"a": "x" * MAX_EVENT_BYTES})), "too_large", 413, "event_too_large"
    ),
}


def accepted(topic: str) -> dict[str, bytes]:
    """Events that look odd and are valid, one each, with this topic."""
    return {
        "literal backslash u0000": with_payload('{"a": "\\\\u0000"}', topic=topic),
        "255-byte id": encode(event(topic=topic, event_id="x" * 255)),
        "63 four-byte characters as id": encode(event(topic=topic, event_id="😀" * 63)),
        "1,000-digit integer": with_payload(f'{{"a": {"9" * 1_000}}}', topic=topic),
        "depth 64": with_payload('{"a":' * 64 + "1" + "}" * 64, topic=topic),
        "surrogate pair": with_payload('{"a": "\\ud83d\\ude00"}', topic=topic),
        "equal keys": with_payload('{"a": 1, "a": 2, "": {"": []}}', topic=topic),
        "tiny and large numbers": with_payload(
            '{"a": [1e-400, 1.7e308, -0, 18446744073709551616]}', topic=topic
        ),
        "white space around": b" \r\n\t" + encode(event(topic=topic)) + b"\n",
        "last second of 2100": encode(event(topic=topic, timestamp="2100-12-31T23:59:59.999999Z")),
        "quotes, slashes and markup": encode(
            event(topic=topic, event_id="../'\";--<b>%00\\", source="\u2028")
        ),
    }
