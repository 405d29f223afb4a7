"""Salvage of any bytes at all: it ends, never raises, never goes back, and never passes the end."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from broker.kafka.salvage import salvage
from broker.ports import Record
from tests.support.kafka_raw import ATTRIBUTES_AT, batch, sealed

headers = st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=4)), max_size=2)
batches = st.builds(
    batch,
    st.lists(st.none() | st.binary(max_size=12), min_size=1, max_size=4),
    key=st.none() | st.binary(max_size=4),
    headers=headers,
    timestamp=st.integers(-1, 2**62),
    compression=st.sampled_from([0, 0, 0, 1]),
)


def at(offset: int, raw: bytes) -> bytes:
    """The batch where a broker would have put it; the checksum does not cover that."""
    return offset.to_bytes(8) + raw[8:]


@st.composite
def stretches(draw: st.DrawFn) -> tuple[bytes, int, list[int]]:
    """Batches one after the other, some damaged; the end, and the offsets of those that are whole."""
    raw, offset = b"", 0
    whole: list[int] = []
    for one in draw(st.lists(batches, min_size=1, max_size=4)):
        count = int.from_bytes(one[57:61])
        placed = at(offset, one)
        if draw(st.booleans()):
            whole += range(offset, offset + count)
        else:
            damaged = bytearray(placed)
            for _ in range(draw(st.integers(1, 3))):
                # Not the length: what follows would be lost with it, as it would be with a broker.
                damaged[draw(st.integers(12, len(damaged) - 1))] = draw(st.integers(0, 255))
            placed = bytes(damaged)
            if len(placed) > ATTRIBUTES_AT and draw(st.booleans()):
                placed = sealed(placed)
        raw += placed
        offset += count
    return raw, offset, whole


def assert_moves_on(raw: bytes, position: int, end: int, aborted: Sequence[tuple[int, int]]) -> set[int]:
    """Read all of it, a few records at a time; the offsets of what could be read."""
    readable: set[int] = set()
    while True:
        found, after = salvage(raw, partition=0, position=position, end=end, aborted=aborted, max_records=2)
        assert len(found) <= 2
        offset = position
        for item in found:
            assert offset <= item.offset < item.next_offset <= after
            offset = item.next_offset
            if isinstance(item, Record):
                readable.add(item.offset)
        assert position <= after
        if after == position:
            return readable
        position = after


@given(stretches())
def test_damage_costs_no_batch_but_its_own(stretch: tuple[bytes, int, list[int]]) -> None:
    raw, end, whole = stretch
    assert set(whole) <= assert_moves_on(raw, 0, end, ())


@given(
    st.binary(max_size=300) | batches.map(lambda raw: raw[:-3]) | stretches().map(lambda stretch: stretch[0]),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 5)), max_size=2),
)
def test_any_bytes_are_read_without_an_error(
    raw: bytes, position: int, aborted: list[tuple[int, int]]
) -> None:
    assert_moves_on(raw, position, 100, aborted)
