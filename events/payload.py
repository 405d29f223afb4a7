"""The rules of an event's payload: its depth, its numbers, its text.

Two ways lead to the same answer. The fast one (orjson) accepts nearly everything that is valid. Whatever it
cannot take goes to the exact one (the standard library's parser with number hooks), which either finds the
rule that was broken or accepts what orjson cannot hold, such as integers beyond 64 bits. Both build the same
canonical form, so a content hash does not depend on the way taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from math import isinf
from typing import Any, Final, NoReturn

import orjson

from events.errors import InvalidCode, InvalidEvent
from events.event import MAX_DEPTH, MAX_INTEGER_DIGITS
from events.text import TO_ZEROS, not_json, require_utf8

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
# A number that binary64 or 64-bit integers may not hold exactly: 16 digits or more, or an exponent of three.
_INEXACT_NUMBER: Final = re.compile(rb"[:\[,]\s*-?(?:[0-9.]{16}|[0-9.]+[eE][+-]?[0-9]{3})")
# Strings, closed or not.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
# What turns the rest into nothing but square brackets.
_TO_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
# NUL stands between payloads: as it is, it can be in none.
_NOT_OPENINGS: Final = bytes(set(range(256)) - set(b"[{\0"))
# What leaves nothing of a number but its exponent, between whatever stands around a number.
_TO_EXPONENTS: Final = bytes.maketrans(b"{}[],E", b":::::e")
_DIGITS_AND_SPACE: Final = b"0123456789.+- \t\r\n"
_EXPONENT: Final = b":e:"
_MANY_DIGITS: Final = 300
_BACKSLASH: Final = ord("\\")
_MAX_EXPONENT_CHARACTERS: Final = 18


def parse_payload(payload: bytes) -> Any:
    """The payload's value, which `canonical` takes. Numbers that Python's do not hold are kept as digits.

    Raises:
        InvalidEvent: with the rule that was broken.
    """
    if payload[:1] != b"{":
        raise InvalidEvent(InvalidCode.SCHEMA, "`payload` must be a JSON object.")
    if len(payload.translate(None, _NOT_OPENINGS)) > MAX_DEPTH and nesting_depth(payload) > MAX_DEPTH:
        raise InvalidEvent(InvalidCode.TOO_DEEP, f"`payload` is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        value = _parse_exactly(payload)
    else:
        # What comes out as it went in lost nothing. That is cheaper to find out than where numbers are.
        if orjson.dumps(value) != payload and _INEXACT_NUMBER.search(payload):
            value = _parse_exactly(payload)
    if _BACKSLASH in payload and b"\\u0000" in payload:
        check_text(value)
    return value


def parse_plain_payloads(payloads: Sequence[bytes]) -> list[Any] | None:
    """The values, if all of these plainly obey every rule; None if it is still open."""
    if _most_openings(payloads) > MAX_DEPTH:
        return None
    try:
        values = list(map(orjson.loads, payloads))
    except orjson.JSONDecodeError:
        return None
    if set(map(type, values)) != {dict}:
        return None
    if list(map(orjson.dumps, values)) != payloads and any(map(_INEXACT_NUMBER.search, payloads)):
        return None
    together = b"".join(payloads)
    if _BACKSLASH in together and b"\\u0000" in together:
        return None
    return values


def payloads_are_plain(payloads: Sequence[bytes]) -> bool:
    """Whether all of these, each well-formed JSON but for its encoding, plainly obey every rule. Of others it
    is still open.

    Nothing is parsed: a number without an exponent and of fewer than 300 digits is within every range.
    """
    if {payload[:1] for payload in payloads} != {b"{"}:
        return False
    if _most_openings(payloads) > MAX_DEPTH:
        return False
    together = b"".join(payloads)
    try:
        require_utf8(together)
    except InvalidEvent:
        return False
    if _BACKSLASH in together and b"\\u0000" in together:
        return False
    if _EXPONENT in together.translate(_TO_EXPONENTS, _DIGITS_AND_SPACE):
        return False
    return max(map(len, payloads)) < _MANY_DIGITS or b"0" * _MANY_DIGITS not in together.translate(TO_ZEROS)


def _most_openings(payloads: Sequence[bytes]) -> int:
    """Brackets that open in one of them, in strings or not: nesting is no deeper."""
    return max(map(len, b"\0".join(payloads).translate(None, _NOT_OPENINGS).split(b"\0")))


def canonical(value: Any) -> bytes:
    """The form that is equal for equal payloads, whatever the order of keys or white space."""
    return orjson.dumps(value, default=_encode_number, option=orjson.OPT_SORT_KEYS)


def _parse_exactly(payload: bytes) -> Any:
    """Parse with the standard library, keeping apart numbers that binary64 would merge.

    Raises:
        InvalidEvent: code `invalid_encoding`, `invalid_json`, `number_range` or `unstorable_text`.
    """
    text = require_utf8(payload)
    try:
        value = json.loads(
            text, parse_int=exact_integer, parse_float=exact_float, parse_constant=refuse_constant
        )
    except InvalidEvent:
        raise
    except ValueError as error:
        raise InvalidEvent(InvalidCode.INVALID_JSON, not_json(error)) from None
    check_text(value)
    return value


class _ExactNumber:
    """A number that neither 64-bit integers nor binary64 hold; kept as its digits."""

    def __init__(self, text: str) -> None:
        self.text = text


def _encode_number(value: Any) -> dict[str, str]:
    # The key is one that no payload can have, so this stands for nothing else.
    assert isinstance(value, _ExactNumber)
    return {"\0": value.text}


def exact_integer(digits: str) -> int | _ExactNumber:
    """The integer as `parse_payload` gives it. Raises InvalidEvent (`number_range`)."""
    if len(digits) - digits.startswith("-") > MAX_INTEGER_DIGITS:
        raise InvalidEvent(
            InvalidCode.NUMBER_RANGE, f"`payload` has an integer of more than {MAX_INTEGER_DIGITS:,} digits."
        )
    value = int(digits)
    if -(2**63) <= value < 2**64:
        return value
    return _ExactNumber(str(value))


def exact_float(digits: str) -> float | _ExactNumber:
    """The number with a fraction or an exponent, likewise. Raises InvalidEvent (`number_range`)."""
    value = float(digits)
    if isinf(value):
        raise InvalidEvent(InvalidCode.NUMBER_RANGE, "`payload` has a number beyond the range of a double.")
    exact = _scientific(digits)
    if exact == _scientific(repr(value)):
        return value
    return _ExactNumber(exact)


def _scientific(number: str) -> str:
    """A decimal number in the one form `<sign><digits without zeros around them>e<exponent>`."""
    mantissa, _, exponent = number.lower().partition("e")
    if len(exponent) > _MAX_EXPONENT_CHARACTERS:
        raise InvalidEvent(InvalidCode.NUMBER_RANGE, "`payload` has a number whose exponent is out of range.")
    sign = "-" if mantissa[0] == "-" else ""
    whole, _, fraction = mantissa[len(sign) :].partition(".")
    digits = (whole + fraction).lstrip("0")
    stripped = digits.rstrip("0")
    if not stripped:
        return f"{sign}0"
    return f"{sign}{stripped}e{int(exponent or 0) - len(fraction) + len(digits) - len(stripped)}"


def refuse_constant(name: str) -> NoReturn:
    """For NaN and the infinities, which the standard library's parser takes. Raises InvalidEvent."""
    raise InvalidEvent(InvalidCode.NUMBER_RANGE, f"`payload` has the non-finite number {name}.")


def check_text(value: Any) -> None:
    """Raise InvalidEvent (`unstorable_text`) for a NUL or a lone surrogate in any key or value."""
    for text in _texts(value):
        if "\0" in text:
            raise InvalidEvent(
                InvalidCode.UNSTORABLE_TEXT, "`payload` contains a NUL character (\\u0000) in a key or value."
            )
        if has_surrogate(text):
            raise InvalidEvent(
                InvalidCode.UNSTORABLE_TEXT, "`payload` contains a lone surrogate (\\ud800 to \\udfff)."
            )


def has_surrogate(text: str) -> bool:
    """Whether there is a lone one: a string of Python holds no pairs."""
    return _SURROGATE.search(text) is not None


def _texts(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            yield from item
            pending.extend(item.values())


def nesting_depth(raw: bytes) -> int:
    """Deepest nesting of brackets outside strings, without recursion; exact up to a little over `MAX_DEPTH`.

    Brackets that do not match count as nested. Every round takes away the innermost pairs.
    """
    brackets = _STRING.sub(b"", raw).translate(_TO_BRACKETS, _NOT_BRACKETS)
    depth = 0
    while brackets and depth <= MAX_DEPTH + 2:
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            return depth + inner.count(b"[")
        brackets = inner
        depth += 1
    return depth
