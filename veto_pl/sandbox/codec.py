"""Plain values as bytes, and frames of bytes on a pipe.

Both child programs use it, so it imports next to nothing. The decoder builds exact builtin types only and runs no code
of the sender: no pickles, no classes, no names. What can be iterated over once arrives as an iterator over its values.
A value of any other type crosses as a number and its truth.
"""

from __future__ import annotations

import os
import struct
from itertools import chain, islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_FRAME_BYTES = 2**26
"""Bytes of a frame; a longer one ends the conversation."""

MAX_ITEMS = 10_000
"""Values that an iterator may yield to cross; one that yields more, perhaps without end, is not plain."""

# The type, what it holds, and how it is made from that.
_CONTAINERS: dict[bytes, tuple[type, Callable[[Any], list[Any]], Callable[[list[Any]], Any]]] = {
    b"l": (list, list, list),
    b"t": (tuple, list, tuple),
    b"e": (set, list, set),
    b"z": (frozenset, list, frozenset),
    b"d": (
        dict,
        lambda value: [item for pair in dict.items(value) for item in pair],
        lambda items: dict(zip(items[::2], items[1::2], strict=True)),
    ),
    b"k": (type({}.keys()), list, lambda items: dict.fromkeys(items).keys()),
    b"v": (type({}.values()), list, lambda items: dict(enumerate(items)).values()),
    b"m": (type({}.items()), list, lambda items: dict(items).items()),
    b"r": (range, lambda value: [value.start, value.stop, value.step], lambda items: range(*items)),
    b"g": (type(iter([])), list, iter),
}
_CONSTANTS: dict[bytes, Any] = {b"N": None, b"T": True, b"F": False}


def encode(value: Any, opaque: Callable[[Any], tuple[int, bool]]) -> bytes:
    """Write a value as bytes; an instance of a subclass of a plain type is written as that type.

    Args:
        value: anything.
        opaque: maps a value that is not plain to its number and its truth; it may raise.

    Raises:
        RecursionError: for a value that holds itself, or is nested some hundreds of levels deep.
    """
    parts: list[bytes] = []
    _write(value, parts, opaque)
    return b"".join(parts)


def decode(data: bytes, opaque: Callable[[int, bool], Any]) -> Any:
    """Read what `encode` wrote; `opaque` maps number and truth to an object.

    Raises:
        ValueError: for bytes that `encode` cannot have written.
        TypeError: for a set or dictionary that holds what cannot be hashed.
    """
    reader = _Reader(data, opaque)
    value = reader.value()
    if reader.place != len(data):
        raise ValueError("bytes behind the value")
    return value


def send(pipe: int, data: bytes) -> None:
    """Write one frame."""
    rest = memoryview(struct.pack("<Q", len(data)) + data)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def receive(pipe: int) -> bytes | None:
    """Read one frame; return None where the other side has gone, also in the middle of a frame.

    Raises:
        ValueError: for a frame of more than `MAX_FRAME_BYTES` bytes.
    """
    head = _exactly(pipe, 8)
    if head is None:
        return None
    (length,) = struct.unpack("<Q", head)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return _exactly(pipe, length)


def _exactly(pipe: int, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = os.read(pipe, min(count - len(data), 2**16))
        if not part:
            return None
        data += part
    return bytes(data)


def _write(value: Any, parts: list[bytes], opaque: Callable[[Any], tuple[int, bool]]) -> None:
    if isinstance(value, bool) or value is None:
        parts.append(b"N" if value is None else b"T" if value else b"F")
    elif isinstance(value, int):
        _text(b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True), parts)
    elif isinstance(value, float):
        parts.append(b"f" + struct.pack("<d", value))
    elif isinstance(value, complex):
        parts.append(b"c" + struct.pack("<dd", value.real, value.imag))
    elif isinstance(value, str):
        _text(b"s", str.encode(value, "utf-8", "surrogatepass"), parts)
    elif isinstance(value, bytes):
        _text(b"b", value, parts)
    else:
        _write_container(value, parts, opaque)


def _text(tag: bytes, data: bytes, parts: list[bytes]) -> None:
    parts.append(tag + struct.pack("<Q", len(data)) + data)


def _write_container(value: Any, parts: list[bytes], opaque: Callable[[Any], tuple[int, bool]]) -> None:
    if _iterates(value):
        items = list(islice(value, MAX_ITEMS + 1))
        value = iter(items) if len(items) <= MAX_ITEMS else chain(items, value)
    for tag, (kind, held, _) in _CONTAINERS.items():
        if isinstance(value, kind):
            items = held(value)
            parts.append(tag + struct.pack("<Q", len(items)))
            for item in items:
                _write(item, parts, opaque)
            return
    parts.append(b"h" + struct.pack("<Q?", *opaque(value)))


def _iterates(value: Any) -> bool:
    """Return whether the value is a generator, `map`, `zip`, ...: tests do nothing with those but take their values."""
    return type(value).__module__ in ("builtins", "itertools") and hasattr(type(value), "__next__")


class _Reader:
    def __init__(self, data: bytes, opaque: Callable[[int, bool], Any]) -> None:
        self.data, self.opaque, self.place = data, opaque, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        if len(part) < count:
            raise ValueError("the value is cut off")
        self.place += count
        return part

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def value(self) -> Any:
        tag = self.take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"f":
            return self.unpack("<d")[0]
        if tag == b"c":
            return complex(*self.unpack("<dd"))
        if tag == b"h":
            number, truth = self.unpack("<QB")
            return self.opaque(number, bool(truth))
        (length,) = self.unpack("<Q")
        return self.text(tag, length) if tag in b"isb" else self.container(tag, length)

    def text(self, tag: bytes, length: int) -> Any:
        data = self.take(length)
        if tag == b"i":
            return int.from_bytes(data, "little", signed=True)
        return data if tag == b"b" else data.decode("utf-8", "surrogatepass")

    def container(self, tag: bytes, length: int) -> Any:
        if tag not in _CONTAINERS:
            raise ValueError(f"no value begins with {tag!r}")
        return _CONTAINERS[tag][2]([self.value() for _ in range(length)])
