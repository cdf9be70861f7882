"""The child program that holds the trusted tests, and calls the candidate in another process.

Only data comes from there: values of exact builtin types, names of exceptions, and numbers that stand for objects.
"""

from __future__ import annotations

import builtins
import os

from veto_pl.sandbox.candidate import READY
from veto_pl.sandbox.codec import decode, encode, receive, send
from veto_pl.sandbox.fence import enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range)
_OF_PLAIN_VALUES = {name for kind in _PLAIN for name in dir(kind)}

# The tests of some problems draw numbers; the same completion gets the same verdict.
SEEDS = {"random": "import random; random.seed(0)", "numpy": "import numpy; numpy.random.seed(0)"}


class CandidateError(Exception):
    """The candidate raised an exception that is not a builtin one."""


class Link:
    """The connection to the candidate; once broken, it stays so, and no test can pass any more."""

    def __init__(self, calls: int, replies: int) -> None:
        self.calls, self.replies, self.broken = calls, replies, False

    def ask(self, *request: Any, made: bool) -> Any:
        """Return the value that the candidate answers; raise where it raised, or has gone, or answers nonsense.

        Args:
            request: what the candidate shall do.
            made: whether objects in the answer count as made by a class that the tests use.
        """
        data = encode(request, _number)
        try:
            send(self.calls, data)
            reply = receive(self.replies)
            kind, value = decode(reply or b"", lambda number, truth: Opaque(self, number, truth, made))
        except (OSError, ValueError, TypeError, RecursionError, MemoryError) as error:
            self.broken = True
            raise CandidateError("the candidate has gone") from error
        if kind == "value":
            return value
        raise _exception(value)


class Opaque:
    """An object of the candidate: can be called, passed back, and asked for attributes; equal to nothing.

    Where tests ask for `startswith` or `issubset`, they mean a plain value, and the answer is not for the candidate to
    give. So an object has no attribute of that name, unless the tests have made it by a class of the program.
    """

    __slots__ = ("_link", "_made", "_number", "_truth")

    def __init__(self, link: Link, number: int, truth: bool, made: bool) -> None:
        for name, value in zip(self.__slots__, (link, made, number, truth), strict=True):
            object.__setattr__(self, name, value)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._link.ask("call", self, positional, named, made=self._made)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or (name in _OF_PLAIN_VALUES and not self._made):
            raise AttributeError(name)
        return self._link.ask("get", self, name, made=self._made)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value, made=self._made)

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        return bool(self._truth)


def agree(actual: Any, expected: Any, tolerance: float) -> bool:
    """Return whether two plain values are equal, floats up to `tolerance` + 1e-7 |expected|.

    Example:
        >>> agree([1.0, (2, 3.0)], [1.0, (2, 3.0 + 1e-9)], 1e-6), agree([1], (1,), 1e-6)
        (True, False)
    """
    if actual == expected:
        return True
    if isinstance(expected, float) and isinstance(actual, float | int):
        near = abs(actual - expected) <= tolerance + 1e-7 * abs(expected) < float("inf")
        return near or (actual != actual and expected != expected)
    if type(actual) is not type(expected) or not isinstance(expected, list | tuple | dict):
        return False
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(agree(actual[k], expected[k], tolerance) for k in expected)
    pairs = zip(actual, expected, strict=False)
    return len(actual) == len(expected) and all(agree(a, e, tolerance) for a, e in pairs)


def main(job: dict[str, Any]) -> None:
    """Enter the fence, wait for the candidate, and report `ready` and then one word."""
    enter(job["fence"])
    link = Link(job["calls"], job["replies"])
    if receive(link.replies) == READY:  # the time of the program begins here
        os.write(job["verdict"], b"ready\n")
        os.write(job["verdict"], run_tests(link, job).encode("utf-8", "replace")[:100] + b"\n")
    os._exit(0)  # whatever the tests have registered to run at exit


def run_tests(link: Link, job: dict[str, Any]) -> str:
    """Run the tests; return `passed`, or what stopped them."""
    namespace: dict[str, Any] = {"__name__": "tests", "agree": agree, **job["values"]}
    try:
        code = job["setup"] + job["code"]
        for library in filter(code.__contains__, SEEDS if "random" in code else ()):
            exec(SEEDS[library], {})
        exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), namespace)
        for name in job["names"]:
            namespace[name] = link.ask("name", name, made=name in job["classes"])
        exec(compile(job["code"], "<tests>", "exec", dont_inherit=True), namespace)
    except BaseException as error:
        return "gone" if link.broken else type(error).__name__
    return "gone" if link.broken else "passed"


def _number(value: Any) -> tuple[int, bool]:
    if type(value) is Opaque:
        return value._number, value._truth
    raise TypeError(f"a value of type {type(value).__name__} cannot be passed to the candidate")


def _exception(name: Any) -> Exception:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    # These two would end a loop of the tests instead of failing it.
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (StopIteration, StopAsyncIteration):
        try:
            return kind("raised by the candidate")
        except TypeError:  # such as UnicodeDecodeError, which needs five arguments
            pass
    return CandidateError(str(name)[:80])
