"""Finds out which protections work on this machine."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import lru_cache

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from veto_pl.sandbox.codec import decode, receive
from veto_pl.sandbox.commands import LEVELS, missing_tool
from veto_pl.sandbox.limits import Level, Limits
from veto_pl.sandbox.processes import start


@dataclass(frozen=True)
class Protection:
    """The protections that untrusted programs run behind.

    Args:
        level: `bubblewrap` and `unshare` give namespaces: no network, no other processes, an own folder of limited
            size. `bubblewrap` also hides the file system. `limits` gives neither.
        landlock: the kernel hides and protects all files but the standard library's and those of the own folder.
        seccomp: the kernel refuses sockets, signals, tracing, other process groups, new namespaces, memory that no
            limit counts, pools of the whole machine, and locks and watches on files.
        own_user: programs run as a user that nobody else has.
    """

    level: Level
    landlock: bool
    seccomp: bool
    own_user: bool

    @property
    def gaps(self) -> tuple[str, ...]:
        """What a program may do that it should not."""
        spaces = self.level != "limits"
        found = {
            "use the network": spaces or self.seccomp,
            "reach socket files of other programs": self.level == "bubblewrap" or self.seccomp,
            "read files": self.level == "bubblewrap" or self.landlock,
            "change files": self.level == "bubblewrap" or self.landlock or self.own_user,
            "signal and limit other processes of the user": spaces or self.seccomp or self.own_user,
            "outlive its time": spaces or self.seccomp or self.own_user,
            "use memory beyond its limit": self.seccomp,
            "fill the disk while it runs": spaces,
        }
        return tuple(gap for gap, closed in found.items() if not closed)

    def __str__(self) -> str:
        names = ["landlock" * self.landlock, "seccomp" * self.seccomp, "a user of its own" * self.own_user]
        text = ", ".join([self.level, *filter(None, names)])
        return f"{text}; a program may {', '.join(self.gaps)}" if self.gaps else text


def protection(level: str = "auto") -> Protection:
    """Return what is active for `Limits.protection`; it is found out once per process, by trying, and logged once.

    Raises:
        ValueError: where the level does not work here.
    """
    found, reasons = _first_working(LEVELS if level == "auto" else (level,))
    if found is None:
        raise ValueError(
            f"`Limits.protection` is {level!r}, which does not work here: {'; '.join(reasons)}. Install bubblewrap "
            "(`apt install bubblewrap`), or set `auto`, and read docs/sandbox.md for what each level protects from."
        )
    return found


@lru_cache(maxsize=8)
def _first_working(levels: tuple[Level, ...]) -> tuple[Protection | None, list[str]]:
    reasons: list[str] = []
    for level in levels:
        try:
            found = _probe(level)
        except (OSError, ValueError) as error:
            reasons.append(f"{level}: {error}")
            continue
        tell = rank_zero_warn if found.gaps else rank_zero_info
        tell(f"Programs under test run behind {found}.")
        return found, reasons
    return None, reasons


def _probe(level: Level) -> Protection:
    if sys.platform != "linux":
        raise OSError("it needs Linux")
    if (absent := missing_tool(level)) is not None:
        raise OSError(f"`{absent}` is not installed")
    report, out = os.pipe()
    try:
        child = start("fence", {"report": out}, [out], Limits(), level, trusted=True)
    finally:
        os.close(out)
    try:
        data = receive(report)
        if data is None:
            raise OSError(child.stderr_tail() or "the child program ended early")
    finally:
        os.close(report)
        child.end()
    return Protection(level, **decode(data, lambda number, _: number))
