"""The child program that runs an untrusted program for what it prints."""

from __future__ import annotations

import os
import sys

from veto_pl.sandbox.examiner import SEEDS
from veto_pl.sandbox.fence import enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BEGUN = b"begun\n"
"""Stands before all that the program prints; its time counts from there."""
_NAME = "<program>"


def main(job: dict[str, Any]) -> None:
    """Enter the fence, report that, and run the program with its output in the pipe; end with 0 where it did not fail.

    The module `__main__` is its own, and the value of an expression in its last line is printed, as at a prompt.
    """
    enter(job["fence"])
    os.write(job["output"], BEGUN)
    for stream in (1, 2):
        os.dup2(job["output"], stream)
    os.close(job["output"])
    sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=True)
    os._exit(_status(job["program"]))  # without waiting for threads


def _status(program: str) -> int:
    """Run the program, print what it raises, and return its exit status."""
    status = 0
    try:
        _run(program)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code)
    except BaseException as error:
        status = 1
        _report(error)
    try:
        sys.stdout.flush()
    except BaseException:
        status = 1
    return status & 0xFF


def _run(program: str) -> None:
    import ast

    if "random" in program:  # equal programs print equal numbers
        exec(SEEDS["random"], {})
    sys.modules["__main__"] = module = type(sys)("__main__")
    lines = ast.parse(program, _NAME)
    last = ast.Interactive([lines.body.pop()]) if lines.body and isinstance(lines.body[-1], ast.Expr) else None
    for part, mode in ((lines, "exec"), (last, "single")):
        if part is not None:
            exec(compile(part, _NAME, mode, dont_inherit=True), module.__dict__)


def _report(error: BaseException) -> None:
    """Print an exception with its way through the program; what lies above is of no use to who has written it."""
    import traceback

    way = error.__traceback__
    while way is not None and way.tb_frame.f_code.co_filename != _NAME:
        way = way.tb_next
    traceback.print_exception(type(error), error, way)
