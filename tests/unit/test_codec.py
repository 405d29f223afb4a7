"""Bytes to events: every rule at its boundary, and properties that hold for any input."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from decimal import Decimal
from itertools import chain
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import codec
from events.errors import InvalidCode, InvalidEvent
from events.event import MAX_EVENT_BYTES, Event, identity, log_key, moment
from events.fields import parse_timestamp
from events.split import split_events
from tests.support.data import real_events

FIELDS: dict[str, Any] = {
    "topic": "shop.orders",
    "event_id": "order-1",
    "timestamp": "2026-01-31T12:00:00+01:00",
    "source": "web",
    "payload": {},
}
PAYLOAD_MARK = '"payload": {}'


def encode(**changes: Any) -> bytes:
    fields = {**FIELDS, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def around(payload: str) -> bytes:
    """An event with the text of its payload."""
    return json.dumps(FIELDS).replace(PAYLOAD_MARK, f'"payload": {payload}').encode()


def decode_event(raw: bytes) -> Event:
    """What the codec makes of an event, the same by itself and in company, decoded and only checked."""
    ordinary = encode(event_id="ordinary")
    company = [ordinary, raw, ordinary]
    _, in_company, _ = codec.decode_events(company)
    _, checked, _ = chain.from_iterable(codec.check_events(company))
    alone: Event | InvalidEvent
    try:
        alone = codec.decode_event(raw)
    except InvalidEvent as error:
        alone = error
    # Compared here, since whoever expects a refusal would take it from either.
    if isinstance(alone, Event):
        assert in_company == alone
        assert checked == (alone.topic, alone.event_id)
        return alone
    for other in in_company, checked:
        assert isinstance(other, InvalidEvent)
        assert vars(other) == vars(alone)
    raise alone


def refusal(raw: bytes) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        decode_event(raw)
    return caught.value


class TestNames:
    """Topic, event_id and source."""

    @pytest.mark.parametrize("field", ["topic", "event_id", "source"])
    @pytest.mark.parametrize("value", ["x", "x" * 255, "é" * 127 + "x", "😀" * 63 + "xyz"])
    def test_up_to_255_bytes_are_accepted(self, field: str, value: str) -> None:
        assert getattr(decode_event(encode(**{field: value})), field) == value

    @pytest.mark.parametrize("field", ["topic", "event_id", "source"])
    @pytest.mark.parametrize("value", ["", "x" * 256, "é" * 128, "😀" * 64, None, 17, True, ["x"], ...])
    def test_empty_longer_absent_and_other_types_are_refused(self, field: str, value: object) -> None:
        assert refusal(encode(**{field: value})).code is InvalidCode.SCHEMA

    @pytest.mark.parametrize("field", ["topic", "event_id"])
    @pytest.mark.parametrize("character", ["\n", "\t", "\x1f", "\x7f", "\x80", "\x9f"])
    def test_control_characters_are_refused(self, field: str, character: str) -> None:
        assert refusal(encode(**{field: f"a{character}b"})).code is InvalidCode.SCHEMA

    @pytest.mark.parametrize("value", ["a b", "a\u00a0b", "a\u200bb", "a\u2028b", "\ufeff", "a\u00adb"])
    def test_spaces_and_invisible_characters_are_kept(self, value: str) -> None:
        assert decode_event(encode(event_id=value)).event_id == value

    @pytest.mark.parametrize("field", ["topic", "event_id", "source"])
    @pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "\\udfff", "\\ude00\\ud83d"])
    def test_nul_and_lone_surrogates_are_refused(self, field: str, text: str) -> None:
        raw = encode(**{field: "MARK"}).replace(b"MARK", text.encode())
        assert refusal(raw).code is InvalidCode.UNSTORABLE_TEXT

    def test_identity_and_log_key_separate_the_two_parts(self) -> None:
        assert log_key("a", "b") == b"a\0b"
        assert identity("ab", "c") != identity("a", "bc")
        assert len(identity("a", "b")) == 16


class TestTimestamp:
    """RFC 3339 with an offset, 1970 to 2100, into UTC."""

    @pytest.mark.parametrize(
        ("text", "utc"),
        [
            ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00"),
            ("2026-01-31t12:00:00z", "2026-01-31T12:00:00"),
            ("2026-01-31T12:00:00+01:00", "2026-01-31T11:00:00"),
            ("2026-01-31T12:00:00-00:00", "2026-01-31T12:00:00"),
            ("2026-01-01T00:30:00+05:45", "2025-12-31T18:45:00"),
            ("2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.500000"),
            ("2026-01-31T12:00:00.123456789Z", "2026-01-31T12:00:00.123456"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00"),
            ("1969-12-31T23:30:00-01:00", "1970-01-01T00:30:00"),
            ("2100-12-31T23:59:59.999999Z", "2100-12-31T23:59:59.999999"),
            ("2101-01-01T00:30:00+01:00", "2100-12-31T23:30:00"),
            ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00"),
        ],
    )
    def test_is_moved_to_utc(self, text: str, utc: str) -> None:
        assert moment(parse_timestamp(text)) == dt.datetime.fromisoformat(utc + "+00:00")
        assert moment(parse_timestamp(text)).tzinfo is dt.UTC

    @pytest.mark.parametrize(
        "text",
        [
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:30:00+01:00",
            "2101-01-01T00:00:00Z",
            "2100-12-31T23:30:00-01:00",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "0000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "+2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00",
            "2026-01-31",
            "2026-01-31 12:00:00Z",
            "2026-01-31T12:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00,5Z",
            "2026-01-31T12:00:00+0100",
            "2026-01-31T12:00:00+01",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00Z\n",
            " 2026-01-31T12:00:00Z",
            "2026-02-30T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:60:00Z",
            "2026-01-31T12:00:60Z",
            "２０２６-01-31T12:00:00Z",
            "now",
            "infinity",
            "-infinity",
            "2026-01-31T12:00:00 BC",
            "1769857200",
            "",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        assert refusal(encode(timestamp=text)).code is InvalidCode.SCHEMA

    @given(st.integers(86_400, 4_133_900_000), st.integers(0, 999_999), st.integers(-1439, 1439))
    def test_any_offset_names_the_same_instant(self, seconds: int, micros: int, minutes: int) -> None:
        instant = dt.datetime.fromtimestamp(seconds, dt.UTC).replace(microsecond=micros)
        local = instant.astimezone(dt.timezone(dt.timedelta(minutes=minutes)))
        assert moment(parse_timestamp(local.isoformat())) == instant


class TestPayload:
    """Depth, numbers, text."""

    @pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")])
    def test_depth_of_64_is_accepted_and_65_refused(self, opening: str, closing: str) -> None:
        def nested(depth: int) -> bytes:
            return around('{"a":' + opening * (depth - 1) + "1" + closing * (depth - 1) + "}")

        assert decode_event(nested(64))
        assert refusal(nested(65)).code is InvalidCode.TOO_DEEP

    def test_brackets_in_strings_are_not_depth(self) -> None:
        assert decode_event(around(json.dumps({"a": '[{\\"' * 100})))

    @pytest.mark.parametrize("sign", ["", "-"])
    def test_integer_of_1000_digits_is_accepted_and_1001_refused(self, sign: str) -> None:
        assert decode_event(around(f'{{"a": {sign}{"9" * 1_000}}}'))
        assert refusal(around(f'{{"a": {sign}{"9" * 1_001}}}')).code is InvalidCode.NUMBER_RANGE

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e309", "1.8e308"])
    def test_numbers_that_are_not_finite_are_refused(self, number: str) -> None:
        error = refusal(around(f'{{"a": [{number}]}}'))
        assert (error.code, error.topic, error.event_id) == ("number_range", "shop.orders", "order-1")

    @pytest.mark.parametrize(
        "number", ["1e400", "1E+0400", "-1.5e309", "9" * 309 + ".0", "-" + "1" * 310 + "e-0"]
    )
    @pytest.mark.parametrize(
        "shape", ['{"a":N}', '{"a":N,"b":"}"}', '{"a" :\nN }', '{"a":[0,N]}', '{"a":[\tN\r,{}]}', '{"e":N}']
    )
    def test_a_number_beyond_a_double_is_found_wherever_it_stands(self, number: str, shape: str) -> None:
        assert refusal(around(shape.replace("N", number))).code is InvalidCode.NUMBER_RANGE

    @pytest.mark.parametrize("text", [":1e999,", "[e]", ", e,", "9" * 400])
    def test_a_string_that_looks_like_one_is_accepted(self, text: str) -> None:
        assert decode_event(around(json.dumps({"a": text, text: 1})))

    @pytest.mark.parametrize("number", ["1e308", "5e-324", "1e-400", "0.1", "-0", "18446744073709551615"])
    def test_other_numbers_are_accepted(self, number: str) -> None:
        assert decode_event(around(f'{{"a": {number}}}'))

    @pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "a\\udc00b", "\\udc00\\ud800"])
    @pytest.mark.parametrize("shape", ['{"a": "TEXT"}', '{"TEXT": 1}', '{"a": [{"b": {"TEXT": []}}]}'])
    def test_nul_and_lone_surrogates_are_refused_wherever_they_are(self, text: str, shape: str) -> None:
        error = refusal(around(shape.replace("TEXT", text)))
        assert (error.code, error.event_id) == ("unstorable_text", "order-1")

    @pytest.mark.parametrize("text", ["\\\\u0000", "\\\\\\\\u0000", "\\ud83d\\ude00", "\\\\ud800"])
    def test_text_that_only_looks_like_them_is_accepted(self, text: str) -> None:
        assert decode_event(around(f'{{"a": "{text}"}}'))

    @pytest.mark.parametrize("payload", ["[]", "null", "1", '"a"', "true"])
    def test_anything_but_an_object_is_refused(self, payload: str) -> None:
        assert refusal(around(payload)).code is InvalidCode.SCHEMA

    def test_is_kept_byte_for_byte(self) -> None:
        payload = '{ "b" : 1.50,\n"a":"\\u00e9é", "b":2 }'
        assert decode_event(around(payload)).payload == payload.encode()


class TestEvent:
    """The event as a whole."""

    def test_256_kib_are_accepted_and_one_byte_more_refused(self) -> None:
        raw = around('{"a": "%s"}')
        largest = raw.replace(b"%s", b"x" * (MAX_EVENT_BYTES - len(raw) + 2))
        assert len(largest) == MAX_EVENT_BYTES
        assert decode_event(largest)
        assert refusal(largest + b" ").code is InvalidCode.TOO_LARGE

    @pytest.mark.parametrize(
        ("raw", "code"),
        [
            (b"", InvalidCode.INVALID_JSON),
            (b"{", InvalidCode.INVALID_JSON),
            (b"{} {}", InvalidCode.INVALID_JSON),
            (b"\xff", InvalidCode.INVALID_ENCODING),
            (b'{"topic": "\xc3\x28"}', InvalidCode.INVALID_ENCODING),
            (around('{"a": "X"}').replace(b"X", b"\xed\xa0\x80"), InvalidCode.INVALID_ENCODING),
            (b"\xef\xbb\xbf" + encode(), InvalidCode.INVALID_JSON),
            (b"[]", InvalidCode.SCHEMA),
            (b"null", InvalidCode.SCHEMA),
            (b"[" * 100_000, InvalidCode.TOO_DEEP),
            (encode(priority=1), InvalidCode.SCHEMA),
            (encode(payload=...), InvalidCode.SCHEMA),
        ],
    )
    def test_refusal_says_the_rule(self, raw: bytes, code: InvalidCode) -> None:
        assert refusal(raw).code is code

    def test_refusal_names_the_event_only_where_its_names_are_valid(self) -> None:
        error = refusal(encode(source=""))
        assert (error.topic, error.event_id) == ("shop.orders", "order-1")
        error = refusal(encode(event_id="a\nb"))
        assert (error.topic, error.event_id) == ("shop.orders", None)

    def test_refusal_never_echoes_input(self) -> None:
        marks = ["hunter2"]
        for raw in (
            encode(hunter2=1),
            encode(topic="hunter2\n"),
            encode(timestamp="hunter2"),
            around('"hunter2"'),
            b'{"hunter2"',
        ):
            assert not any(mark in refusal(raw).message for mark in marks)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
)
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
values = st.recursive(
    scalars,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(keys, children, max_size=4),
    max_leaves=12,
)
payloads = st.dictionaries(keys, values, max_size=5)
numbers = st.one_of(
    st.sampled_from(["0", "-0", "0.0", "-0.0", "1", "1.0", "1e0", "10e-1", "100", "1e2", "0.1", "1e-1"]),
    st.sampled_from(
        ["9007199254740993", "9007199254740992", "9007199254740993.0", "1e23", "1e+23", "1e-400"]
    ),
    st.sampled_from(["18446744073709551615", "18446744073709551616", "18446744073709551616.0", "1e-0400"]),
    st.from_regex(r"\A-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?\Z"),
)


def spelled_otherwise(value: Any, draw: Any) -> str:
    """The same JSON value with its keys in another order, other white space and other escapes."""
    if isinstance(value, dict):
        items = draw(st.permutations(list(value.items())))
        members = [f"{spelled_otherwise(k, draw)}\t:\n{spelled_otherwise(v, draw)}" for k, v in items]
        return "{ " + " ,".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spelled_otherwise(item, draw) for item in value) + "\r\n]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def reference(number: str) -> tuple[str, object]:
    """What a number means here: integers and decimals differ, and so do the two zeros."""
    if any(character in number for character in ".eE"):
        value = Decimal(number)
        return ("decimal", (value, value.is_signed()))
    return ("integer", int(number))


class TestContentHash:
    """Equal for equal content, whatever its spelling; different for anything else."""

    @given(payloads, st.data())
    def test_ignores_key_order_white_space_and_escapes(
        self, payload: dict[str, Any], data: st.DataObject
    ) -> None:
        plain = decode_event(around(json.dumps(payload)))
        other = decode_event(around(spelled_otherwise(payload, data.draw)))
        assert plain.content_hash == other.content_hash

    @given(payloads, payloads)
    def test_differs_for_different_payloads(self, one: dict[str, Any], two: dict[str, Any]) -> None:
        hashes = [decode_event(around(json.dumps(payload))).content_hash for payload in (one, two)]
        same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
        assert (hashes[0] == hashes[1]) is same

    @given(numbers, numbers)
    @example("9007199254740993", "9007199254740992")
    @example("0.1", "0.1000000000000000055511151231257827")
    @example("1e2", "100.0")
    @example("1e-400", "0.0")
    @example("12345678901234567e2", "12345678901234567.0e2")
    def test_tells_numbers_apart_exactly(self, one: str, two: str) -> None:
        hashes = [decode_event(around(f'{{"a": {number}}}')).content_hash for number in (one, two)]
        assert (hashes[0] == hashes[1]) is (reference(one) == reference(two))

    @given(payloads)
    def test_does_not_depend_on_the_way_the_payload_was_parsed(self, payload: dict[str, Any]) -> None:
        # The last of equal keys wins, so the first one changes nothing, but only the exact parser takes it.
        payload = {**payload, "k": 1}
        fast = json.dumps(payload)
        exact = '{"k": 123456789012345678901234567890, ' + fast[1:]
        assert decode_event(around(fast)).content_hash == decode_event(around(exact)).content_hash

    def test_depends_on_time_and_source_but_not_on_names_or_offset(self) -> None:
        plain = decode_event(encode()).content_hash
        assert decode_event(encode(topic="x", event_id="y")).content_hash == plain
        assert decode_event(encode(timestamp="2026-01-31T11:00:00Z")).content_hash == plain
        assert decode_event(encode(timestamp="2026-01-31T11:00:00.000001Z")).content_hash != plain
        assert decode_event(encode(source="app")).content_hash != plain

    def test_last_of_equal_keys_wins(self) -> None:
        assert (
            decode_event(around('{"a":1,"a":2}')).content_hash == decode_event(around('{"a":2}')).content_hash
        )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An event with some of its bytes changed."""
    raw = bytearray(around(json.dumps(draw(payloads), ensure_ascii=draw(st.booleans()))))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 3)))
        raw[start:end] = draw(st.binary(max_size=3) | st.sampled_from([b'"', b"\\", b"{", b"]", b"\\u0000"]))
    return bytes(raw)


loose_documents = st.dictionaries(st.sampled_from([*FIELDS, "other"]), values | st.just({}), max_size=6)


class TestAnyInput:
    """Bytes become an event or an InvalidEvent, and nothing else."""

    @given(
        st.binary(max_size=200)
        | damaged()
        | loose_documents.map(lambda document: json.dumps(document).encode())
    )
    def test_is_an_event_or_a_refusal_that_fits(self, raw: bytes) -> None:
        event, error = decoded(raw)
        if error is not None:
            assert error.message.endswith(".")
            assert (error.code is InvalidCode.INVALID_ENCODING) is not is_utf8(raw)
            if is_utf8(raw) and error.code is not InvalidCode.TOO_DEEP:
                assert (error.code is InvalidCode.INVALID_JSON) is not is_json(raw)
        else:
            assert event is not None
            document = json.loads(raw)
            assert (event.topic, event.event_id) == (document["topic"], document["event_id"])
            assert json.loads(event.payload) == document["payload"]

    @given(
        st.binary(max_size=200) | damaged() | damaged().map(lambda raw: b"[" + raw + b"]"),
        st.none() | st.integers(0, 5),
    )
    def test_splits_or_is_refused(self, body: bytes, limit: int | None) -> None:
        try:
            pieces = split_events(body, limit)
        except InvalidEvent as error:
            codes = {InvalidCode.INVALID_JSON, InvalidCode.INVALID_ENCODING, InvalidCode.SCHEMA}
            if error.code not in codes:
                raise
        else:
            assert limit is None or len(pieces) <= limit + 1


def decoded(raw: bytes) -> tuple[Event | None, InvalidEvent | None]:
    try:
        return decode_event(raw), None
    except InvalidEvent as error:
        return None, error


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_json(raw: bytes) -> bool:
    try:
        json.loads(raw.decode())
    except ValueError:
        return False
    return True


class TestSplit:
    """A body into the bytes of its events."""

    @given(st.lists(values, max_size=8), st.data())
    def test_equals_parsing_the_array(self, array: list[Any], data: st.DataObject) -> None:
        body = spelled_otherwise(array, data.draw).encode()
        assert [json.loads(piece) for piece in split_events(body)] == array

    @given(st.lists(values, max_size=8), st.data())
    def test_element_that_is_no_json_does_not_change_the_others(
        self, array: list[Any], data: st.DataObject
    ) -> None:
        body = spelled_otherwise([*array, "MARK"], data.draw).replace('"MARK"', "NaN").encode()
        *pieces, last = split_events(body)
        assert [json.loads(piece) for piece in pieces] == array
        assert last == b"NaN"

    @given(st.lists(values, max_size=12), st.integers(0, 12), st.booleans())
    def test_limit_ends_after_the_first_element_too_many(
        self, array: list[Any], limit: int, odd: bool
    ) -> None:
        body = json.dumps([*array, *([float("nan")] if odd else [])]).encode()
        everything = split_events(body)
        assert split_events(body, limit)[: limit + 1] == everything[: limit + 1]
        assert (len(split_events(body, limit)) > limit) is (len(everything) > limit)

    @given(payloads, st.sampled_from(["", " ", "\r\n\t "]))
    def test_object_is_one_event_with_its_bytes_untouched(self, payload: dict[str, Any], space: str) -> None:
        raw = around(json.dumps(payload))
        assert split_events(space.encode() + raw + space.encode()) == [raw]

    def test_empty_array_has_no_events(self) -> None:
        assert split_events(b" [ ] ") == []

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", InvalidCode.INVALID_JSON),
            (b" \n", InvalidCode.INVALID_JSON),
            (b"[1,]", InvalidCode.INVALID_JSON),
            (b"[,1]", InvalidCode.INVALID_JSON),
            (b"[NaN,]", InvalidCode.INVALID_JSON),
            (b"[NaN,,NaN]", InvalidCode.INVALID_JSON),
            (b"[NaN", InvalidCode.INVALID_JSON),
            (b"[NaN]]", InvalidCode.INVALID_JSON),
            (b"[NaN] x", InvalidCode.INVALID_JSON),
            (b"nonsense", InvalidCode.INVALID_JSON),
            (b"\xff\xfe{", InvalidCode.INVALID_ENCODING),
            (b"null", InvalidCode.SCHEMA),
            (b"17", InvalidCode.SCHEMA),
            (b'"a"', InvalidCode.SCHEMA),
        ],
    )
    def test_body_that_cannot_be_split_is_refused(self, body: bytes, code: InvalidCode) -> None:
        with pytest.raises(InvalidEvent) as caught:
            split_events(body)
        assert caught.value.code is code

    def test_deep_nesting_is_left_to_the_event(self) -> None:
        deep = b"[" * 100_000 + b"]" * 100_000
        assert split_events(b"[" + deep + b",1]") == [deep, b"1"]


def test_every_real_event_is_decoded_and_hashed_alike_however_it_is_spelled() -> None:
    with gzip.open(real_events()) as lines:
        for number, line in enumerate(lines):
            raw = line.strip()
            event = decode_event(raw)
            document = json.loads(raw)
            assert event.timestamp == dt.datetime.fromisoformat(document["timestamp"])
            assert event.timestamp.tzinfo is dt.UTC
            if number % 10 == 0:
                other = json.dumps(dict(reversed(document.items())), indent=1, sort_keys=number % 20 == 0)
                assert decode_event(other.encode()).content_hash == event.content_hash


def test_real_events_are_all_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    with gzip.open(real_events()) as lines:
        raws = [line.strip() for line in lines]
    expected = [codec.decode_event(raw) for raw in raws[:1_000]]
    monkeypatch.delattr(codec, "_checked")
    decoded = list(codec.decode_events(raws))
    assert decoded[:1_000] == expected
    assert len(decoded) == len(list(chain.from_iterable(codec.check_events(raws)))) == len(raws)


def test_bytes_that_are_not_text_are_refused_for_that_whatever_else_is_wrong() -> None:
    raw = b'{"topic":"","event_id":"","timestamp":"","source":"","payload":{"\x80":null}}'
    with pytest.raises(InvalidEvent) as refusal:
        decode_event(raw)
    assert refusal.value.code is InvalidCode.INVALID_ENCODING
