"""Runs trusted tests against an untrusted program, in two sandboxed processes that are joined by pipes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from veto_pl.sandbox.limits import Level, Limits
from veto_pl.sandbox.processes import Child, SandboxError, start
from veto_pl.sandbox.protection import protection

LONGEST_PROGRAM = 2**20
"""Characters of a program; a longer one is wrong without being run."""
START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Trusted code that decides about a program.

    Args:
        code: runs without an exception where the program is right.
        names: globals of the program that `code` uses.
        setup: code that runs before the names are bound, and so may define the same ones.
        values: plain values that both parts of the code find as globals.
        classes: those of the names that the tests use as classes. What their objects answer is the program's own word;
            other objects have no attribute that plain values have, such as `startswith`.
    """

    __test__ = False  # not a class of tests for pytest

    code: str
    names: tuple[str, ...]
    setup: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed.

    Args:
        passed: all tests ran, and none failed.
        reason: `passed`, `timeout`, `gone` (the program ended or broke the conversation), `too long`, or the name of
            the exception that stopped the tests, such as `AssertionError`.
    """

    passed: bool
    reason: str


def judge(tests: Tests, program: str, limits: Limits | None = None) -> Verdict:
    """Run the tests against the program.

    Args:
        tests: what decides.
        program: any text.
        limits: what both processes may use.

    Raises:
        ConfigurationError: where the level of protection that the limits ask for does not work here.
        SandboxError: where the sandbox does not start, which no program can cause.
    """
    limits = limits or Limits()
    if len(program) > LONGEST_PROGRAM:
        return Verdict(False, "too long")
    level = protection(limits.protection).level
    with ExitStack() as stack:
        pipes, words = _pipes(stack)
        try:
            children = _start_both(stack, tests, program, limits, level, pipes)
        finally:
            for end in pipes.values():
                os.close(end)
        reason = _wait(words, limits.timeout, children[0])
        if reason != "timeout":
            for child in children:
                child.wait()
    return Verdict(reason == "passed", reason)


def _pipes(stack: ExitStack) -> tuple[dict[str, int], int]:
    """Make the pipes; return the ends that the children hold, and the one that this process reads the verdict from."""
    requests, calls = os.pipe()
    answers, replies = os.pipe()
    words, verdict = os.pipe()
    stack.callback(os.close, words)
    return {"requests": requests, "calls": calls, "answers": answers, "replies": replies, "verdict": verdict}, words


def _start_both(
    stack: ExitStack, tests: Tests, program: str, limits: Limits, level: Level, pipes: dict[str, int]
) -> tuple[Child, Child]:
    ends = {"calls": pipes["calls"], "replies": pipes["answers"], "verdict": pipes["verdict"]}
    work = {**vars(tests), "values": dict(tests.values)}
    packages = _packages()
    first = start("examiner", {**ends, **work}, [*ends.values()], limits, level, packages=packages, trusted=True)
    stack.callback(first.end)
    ends = {"calls": pipes["requests"], "replies": pipes["replies"]}
    second = start("candidate", {**ends, "program": program}, [*ends.values()], limits, level)
    stack.callback(second.end)
    return first, second


@lru_cache(maxsize=1)
def _packages() -> list[str]:
    """Return the folder where the tests find numpy; a program under test has the standard library only."""
    found = find_spec("numpy")
    return [str(Path(found.origin).parents[1])] if found is not None and found.origin else []


def _wait(words: int, timeout: float, judge: Child) -> str:
    """Read `ready` and the verdict; the time counts from `ready`, as a slow start is not the program's fault."""
    text, deadline = b"", time.monotonic() + START_SECONDS
    poll = select.poll()
    poll.register(words, select.POLLIN)
    while text.count(b"\n") < 2:
        left = deadline - time.monotonic()
        part = os.read(words, 4096) if left > 0 and poll.poll(left * 1000) else None
        if part is None and text:
            return "timeout"
        if not part:
            break
        deadline = deadline if text else time.monotonic() + timeout
        text += part
    reason = text.decode(errors="replace").split("\n")[1] if text.count(b"\n") == 2 else ""
    if not text:
        raise SandboxError(f"The sandbox did not start: {judge.stderr_tail() or 'no reason was given'}.")
    return reason or "gone"
