"""Python as a tool of agents, behind the sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from threading import Semaphore

from veto_pl.core.bounds import Count
from veto_pl.core.permission import check_permission
from veto_pl.environments.tool_replies import CallFailedError
from veto_pl.environments.tools import CalledTools, Tools
from veto_pl.sandbox import Limits, printed, protection
from veto_pl.seams import Episode, Example


@dataclass(frozen=True)
class PythonTool(Tools):
    """A Python that runs the agent's programs is the only tool; the task judges the last turn.

    Each call runs in a sandbox of its own, with the standard library: nothing that one has computed is there in the
    next. The agent reads what the program prints, and the value of an expression in its last line, as at a prompt. A
    program that raises, ends with another status than 0, runs out of time, or prints too much, is a failed turn; the
    agent reads what it has printed until then, and why it failed. `limits.workers` programs run at a time.

    Args:
        allow_code_execution: permits that programs written by a model are run on this machine.
        limits: what a program may use; `Played.timeout` has to allow for as many programs as wait for a worker.
        longest_output: bytes that a program may print.

    Raises:
        ConfigurationError: running programs is not allowed.
    """

    factory: str = field(init=False, default="veto_pl.environments.python_tool.Python")
    allow_code_execution: bool = False
    limits: Limits = Limits()
    longest_output: Count = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_permission("PythonTool", self.allow_code_execution)

    @classmethod
    def examples(cls) -> tuple[PythonTool, ...]:
        return (cls(allow_code_execution=True),)

    def begin(self, example: Example, seed: int) -> Episode:
        protection(self.limits.protection)  # which says what does not work here before a program is blamed for it
        return CalledTools(Python(self.limits, self.longest_output), example, seed)


class Python:
    """A Python that forgets everything after each program.

    Args:
        limits: what a program may use.
        longest: bytes that it may print.
    """

    def __init__(self, limits: Limits | None = None, longest: int = 10_000) -> None:
        self._limits, self._longest = limits or Limits(), longest

    def python(self, code: str) -> str:
        """Run a Python program, and return what it prints.

        Args:
            code: The program. It has the standard library, no network and no files of its own.
        """
        with _slots(self._limits.threads):
            output = printed(code, self._limits, self._longest)
        if output.reason == "done":
            return output.text
        why = {
            "failed": "The program failed.", "too long": f"The program printed more than {self._longest} bytes.",
            "timeout": f"The program did not end within {self._limits.timeout:g} s.",
        }  # fmt: skip
        raise CallFailedError(f"{output.text}\nError: {why[output.reason]}".lstrip())


@cache
def _slots(count: int) -> Semaphore:
    """Return what lets so many programs of this process run at a time."""
    return Semaphore(count)
