"""Runs an untrusted program for what it prints."""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass

from veto_pl.sandbox.interpreter import BEGUN
from veto_pl.sandbox.limits import Limits
from veto_pl.sandbox.processes import Child, SandboxError, start
from veto_pl.sandbox.protection import protection
from veto_pl.sandbox.verdicts import LONGEST_PROGRAM, START_SECONDS

LONGEST_OUTPUT = 2**16
"""Bytes that a program may print, by default."""


@dataclass(frozen=True)
class Output:
    """What a program has printed.

    Args:
        text: to both of its streams, up to where it was ended.
        reason: `done`, `failed` (it raised, was killed, or ended with another status than 0), `timeout`, or `too long`
            (the program itself, or what it printed).
    """

    text: str
    reason: str


def printed(program: str, limits: Limits | None = None, longest: int = LONGEST_OUTPUT) -> Output:
    r"""Run a program in a sandbox of its own, and return what it prints.

    Args:
        program: any text.
        limits: what it may use.
        longest: bytes that it may print; it is ended there.

    Raises:
        ConfigurationError: where the level of protection that the limits ask for does not work here.
        SandboxError: where the sandbox does not start, which no program can cause.

    Example:
        >>> printed("x = 6\nprint(x)\nx * 7")
        Output(text='6\n42\n', reason='done')
    """
    limits = limits or Limits()
    if len(program) > LONGEST_PROGRAM:
        return Output("", "too long")
    level = protection(limits.protection).level
    output, held = os.pipe()
    try:
        try:
            child = start("interpreter", {"output": held, "program": program}, [held], limits, level)
        finally:
            os.close(held)
        try:
            return _read(output, child, limits.timeout, longest)
        finally:
            child.end()
    finally:
        os.close(output)


def _read(output: int, child: Child, timeout: float, longest: int) -> Output:
    """Read what is printed until the program has ended, whoever else still holds the pipe."""
    data, deadline, reason = bytearray(), time.monotonic() + START_SECONDS, ""
    handle = os.pidfd_open(child.process.pid)
    try:
        poll = select.poll()
        poll.register(output, select.POLLIN)
        poll.register(handle, select.POLLIN)
        while not reason:
            left = deadline - time.monotonic()
            ready = [number for number, _ in poll.poll(left * 1000)] if left > 0 else []
            part = os.read(output, 2**16) if output in ready else b""
            if part and not data:  # a slow start is not the program's fault
                deadline = time.monotonic() + timeout
            data += part
            if len(data) > longest + len(BEGUN):
                reason = "too long"
            elif not ready:
                reason = "timeout"
            elif not part and handle in ready:
                reason = "done" if child.succeeded() else "failed"
            elif not part:  # it has closed its output
                poll.unregister(output)
    finally:
        os.close(handle)
    if not data.startswith(BEGUN):
        raise SandboxError("The sandbox did not start.")
    return Output(bytes(data[len(BEGUN) :][:longest]).decode(errors="replace"), reason)
