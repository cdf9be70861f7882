"""Equality of formulas by math-verify, in a process of its own that may be ended.

sympy evaluates what it reads: `9^{9^{9}}` would fill the memory, and other powers take hours. math-verify guards
against this by a signal, which works in the main thread only and does not interrupt arithmetic. So formulas are
compared in another process, which the system ends where a pair takes too long, and which is then started anew.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import wait
from multiprocessing.util import Finalize

LIMIT = 5.0
"""Seconds of processor time for a pair of formulas; a pair that takes longer is not equal."""
_PATIENCE = 60.0
"""Seconds by the clock, for a process that is kept from computing."""
_MEMORY = 2**31
"""Bytes that the process may use."""
_START = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"  # importing veto_pl.data takes seconds


@lru_cache(maxsize=4096)
def same_formula(expected: str, given: str) -> bool:
    r"""Return whether two formulas in LaTeX are equal by math-verify; False where it takes too long.

    Threads may call it at the same time, each with a process of its own. Processes are kept for the next call and end
    with this process; the first call of a thread waits about a second for its process.

    Raises:
        RuntimeError: math-verify cannot be started.

    Example:
        >>> same_formula(r"2\sqrt{3}", r"\sqrt{12}"), same_formula("x+1", "x+2"), same_formula("9^{9^{9^9}}", "1")
        (True, False, False)
    """
    for _ in range(2):
        try:
            process = _idle.pop()
        except IndexError:
            process = _Process()
        equal = process.compare(expected, given)
        if equal is not None:
            _idle.append(process)
            return equal
        if process.code == -signal.SIGPROF:  # it has used up its time
            return False
    logging.getLogger(__name__).warning(
        "math-verify ended with code %s at %.80r and %.80r, which count as different.", process.code, expected, given
    )
    return False


class _Process:
    """A process that compares one pair after the other."""

    def __init__(self) -> None:
        line = [sys.executable, "-c", _START, __file__, str(LIMIT)]
        self._popen = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.end = Finalize(self, _end, (self._popen,), exitpriority=1)
        if self._reply() is None:
            raise RuntimeError(
                f"math-verify could not be started with {sys.executable} (exit code {self.code}). Its own message "
                "stands above. Install it with `pip install math-verify`."
            )

    @property
    def code(self) -> int | None:
        """The exit code of a process that has ended."""
        return self._popen.returncode

    def compare(self, expected: str, given: str) -> bool | None:
        """Return the verdict, or None where the process has ended instead."""
        assert self._popen.stdin is not None
        try:
            with suppress(BrokenPipeError):
                self._popen.stdin.write(json.dumps([expected, given]).encode() + b"\n")
                self._popen.stdin.flush()
            return self._reply()
        except BaseException:  # such as Ctrl-C: the next reply would belong to this pair
            self.end()
            raise

    def _reply(self) -> bool | None:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline() if wait([self._popen.stdout.fileno()], _PATIENCE) else b""
        if not line:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(1.0)
            self.end()
        return json.loads(line) if line else None


def _end(popen: subprocess.Popen[bytes]) -> None:
    popen.kill()
    with suppress(BrokenPipeError):
        popen.__exit__(None, None, None)  # closes the pipes and waits


_idle: list[_Process] = []
os.register_at_fork(after_in_child=lambda: _idle.clear())  # a child would read the replies of its parent


def _serve() -> None:
    """Answer one pair after the other until nobody listens any more."""
    import resource

    import math_verify

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides when it is over
    logging.disable()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    replies, silence = os.fdopen(os.dup(1), "w"), os.open(os.devnull, os.O_WRONLY)
    print("true", file=replies, flush=True)
    for output in (1, 2):  # the grammar of latex2sympy complains about every formula that it does not know
        os.dup2(silence, output)
    parse = lru_cache(1024)(lambda text: math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=None))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[2]))  # its signal ends the process
        try:
            equal = bool(math_verify.verify(*map(parse, json.loads(line)), timeout_seconds=None))
        except Exception:  # whatever the parser or the arithmetic says to a text, they have not accepted it
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        print(json.dumps(equal), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
