"""Runs unit tests of untrusted programs; docs/sandbox.md says how, and what it protects from."""

from veto_pl.sandbox.limits import Limits
from veto_pl.sandbox.outputs import Output, printed
from veto_pl.sandbox.processes import SandboxError
from veto_pl.sandbox.programs import completed, extract_program
from veto_pl.sandbox.protection import Protection, protection
from veto_pl.sandbox.verdicts import Tests, Verdict, judge

__all__ = [
    "Limits",
    "Output",
    "Protection",
    "SandboxError",
    "Tests",
    "Verdict",
    "completed",
    "extract_program",
    "judge",
    "printed",
    "protection",
]
