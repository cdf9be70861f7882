"""What every bad input has to end in: a short error of this package that names the place, and nothing else.

A case is made of two functions: `prepare` puts the bad input into an empty folder, `act` reads it.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from veto_pl.exceptions import VetoError

JUNK = {
    "{": "{",
    "[]": "[]",
    "nothing": "",
    "null": "null",
    "3": "3",
    "noise": bytes(range(255, 0, -1)),
    "deep": "[" * 10**5,
}
"""What is no JSON object, by name."""

LONGEST = 1200
MARKER = "EXECUTED"
"""A file of this name, which every hostile payload would create, must not be there afterwards."""


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        name: what pytest calls it.
        prepare: writes the input into a folder.
        act: reads it from there.
        names: what the message must contain; `{folder}` stands for the folder.
    """

    name: str
    prepare: Callable[[Path], Any]
    act: Callable[[Path], Any]
    names: tuple[str, ...] = ()


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """One test for every case; names must differ."""
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder; pipes are only named, and locks, which stay, are left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if stat.S_ISREG(path.stat().st_mode)
        else "no file"
        for path in folder.rglob("*")
        if path.exists() and not path.is_dir() and path.suffix != ".lock"
    }


def refuse(case: Case, folder: Path) -> None:
    """Asserts that the input is refused by name, in few words, and that nothing else has happened."""
    inside = folder / "input"
    inside.mkdir()
    case.prepare(inside)
    before = contents(folder)
    with pytest.raises(VetoError) as refusal:
        case.act(inside)
    message = str(refusal.value)
    assert not (folder / MARKER).exists(), "code was executed"
    assert contents(folder) == before, "nothing is written, changed or taken away"
    assert 20 <= len(message) <= LONGEST, message[:LONGEST]
    assert "Traceback" not in message
    for part in case.names:
        assert part.replace("{folder}", str(inside)) in message, message


class Bomb:
    """Creates the marker when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.marker = str(folder.parent / MARKER)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def hostile_module(folder: Path) -> str:
    """Source code that creates the marker when it is imported."""
    return f"import os\nos.mkdir({str(folder.parent / MARKER)!r})\nclass Evil:\n    pass\n"
