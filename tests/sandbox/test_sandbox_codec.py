"""What crosses between the two processes is data, and nothing else."""

import math
import os
import threading
from collections import Counter, OrderedDict, namedtuple
from enum import IntEnum
from itertools import accumulate, chain, count, islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from veto_pl.sandbox.codec import MAX_FRAME_BYTES, MAX_ITEMS, decode, encode, receive, send

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text(st.characters()) | st.binary()
)  # fmt: skip
KEYS = SCALARS | st.tuples(SCALARS, SCALARS) | st.frozensets(SCALARS, max_size=3)
VALUES = st.recursive(
    KEYS | st.sets(KEYS, max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
VIEWS = {type({}.keys()), type({}.values()), type({}.items())}
PLAIN = {
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    list,
    tuple,
    dict,
    set,
    frozenset,
    range,
    type(iter([])),
} | VIEWS


class Thing:
    """No plain value."""


def refuse(*_):
    raise AssertionError("not plain")


def types(value):
    """The type of every value inside."""
    yield type(value)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from types(item)


def ordered(value):
    """Distinguishes 1 from True and 0.0 from -0.0, and keeps the order of dictionaries, but not of sets."""
    if isinstance(value, list | tuple | set | frozenset):
        parts = [ordered(item) for item in value]
        return type(value), sorted(parts, key=repr) if isinstance(value, set | frozenset) else parts
    return [(ordered(k), ordered(v)) for k, v in value.items()] if isinstance(value, dict) else repr(value)


@given(VALUES)
def test_plain_values_arrive_as_they_are(value):
    back = decode(encode(value, refuse), refuse)
    assert back == value
    assert ordered(back) == ordered(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 10**6000, -(2**63), "\ud800", [[[]]] * 3], ids=range(6))
def test_values_that_other_formats_lose(value):
    assert decode(encode(value, refuse), refuse) == value


def test_nan_arrives():
    assert math.isnan(decode(encode(math.nan, refuse), refuse))


@given(st.binary(max_size=60))
@example(b"l" + (2**60).to_bytes(8, "little") + b"N")
@example(b"s" + (2**64 - 1).to_bytes(8, "little"))
@example(b"r" + (3).to_bytes(8, "little") + b"NTF")
@example(b"d" + (1).to_bytes(8, "little") + b"N")
@example(b"k" + (1).to_bytes(8, "little") + b"l" + bytes(8))
@example(b"m" + (1).to_bytes(8, "little") + b"N")
def test_any_bytes_give_plain_values_or_are_refused(data):
    try:
        value = decode(data, lambda number, truth: Thing())
    except (ValueError, TypeError):
        return
    assert set(types(value)) <= PLAIN | {Thing}


@given(VALUES, st.data())
def test_a_value_that_is_cut_off_or_followed_by_more_is_refused(value, data):
    whole = encode(value, refuse)
    with pytest.raises(ValueError, match="cut off"):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))], refuse)
    with pytest.raises(ValueError, match="behind"):
        decode(whole + b"N", refuse)


def test_instances_of_subclasses_arrive_as_the_plain_type():
    point = namedtuple("point", "x y")(1, 2)
    given = [Counter("aab"), OrderedDict(b=1), point, IntEnum("Colour", "RED").RED]
    back = decode(encode(given, refuse), refuse)
    assert back == [{"a": 2, "b": 1}, {"b": 1}, (1, 2), 1]
    assert set(types(back)) == {list, dict, tuple, int, str}


@pytest.mark.parametrize("value", [range(3), range(5, 0, -2), {1: 2}.keys(), {1: [2]}.items(), OrderedDict(a=1).keys()])
def test_ranges_and_views_arrive_as_they_are(value):
    assert decode(encode([value], refuse), refuse) == [value]


def test_values_of_a_dictionary_arrive():
    back = decode(encode({1: [2], 3: [2]}.values(), refuse), refuse)
    assert (type(back), list(back)) == (type({}.values()), [[2], [2]])


@pytest.mark.parametrize(
    ("value", "yields"),
    [
        ((x for x in "ab"), ["a", "b"]),
        (map(int, "12"), [1, 2]),
        (filter(None, [0, 1]), [1]),
        (zip("ab", [1, 2], strict=True), [("a", 1), ("b", 2)]),
        (enumerate("a"), [(0, "a")]),
        (reversed([1, 2]), [2, 1]),
        (iter({1: 2}), [1]),
        (accumulate([1, 2]), [1, 3]),
        (iter(range(MAX_ITEMS)), list(range(MAX_ITEMS))),
    ],
)
def test_what_can_be_iterated_over_once_arrives_as_an_iterator(value, yields):
    back = decode(encode(value, refuse), refuse)
    assert back != yields
    assert list(back) == yields
    assert list(back) == []


def test_an_iterator_without_end_stays_and_loses_nothing():
    kept = []
    encode(chain("a", count()), lambda value: (kept.append(value) or 0, True))
    assert list(islice(kept[0], MAX_ITEMS + 2)) == ["a", *range(MAX_ITEMS + 1)]


def test_other_values_cross_as_number_and_truth():
    kept = []

    def keep(value):
        kept.append(value)
        return len(kept) - 1, False

    things = [Thing(), Thing()]
    assert decode(encode([things[0], {1: things[1]}], keep), lambda *pair: pair) == [(0, False), {1: (1, False)}]
    assert kept == things


def test_frames_arrive_in_order_and_the_end_is_none():
    reader, writer = os.pipe()
    frames = [b"", b"x", bytes(range(256)) * 4096]
    sender = threading.Thread(target=lambda: [*[send(writer, frame) for frame in frames], os.close(writer)])
    sender.start()
    assert [receive(reader) for _ in range(4)] == [*frames, None]
    sender.join()
    os.close(reader)


@pytest.mark.parametrize(("data", "error"), [(b"\x05", None), (b"\x05" + bytes(7) + b"abc", None)])
def test_a_frame_that_ends_early_is_the_end(data, error):
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    assert receive(reader) is error
    os.close(reader)


def test_a_frame_that_is_too_long_is_refused_before_it_is_read():
    reader, writer = os.pipe()
    os.write(writer, (MAX_FRAME_BYTES + 1).to_bytes(8, "little"))
    with pytest.raises(ValueError, match=f"a frame of {MAX_FRAME_BYTES + 1} bytes"):
        receive(reader)
    os.close(reader)
    os.close(writer)
