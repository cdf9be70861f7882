"""What teachers have to say of a row beside its scores, such as their part in a debate, as tables and pages show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Note = Mapping[str, Any]
"""What a teacher says of a row, or of a turn of it: numbers, words, and lists of longer texts, by name."""


def brief(note: Note) -> str:
    """Return the numbers and words of a note in one line.

    Example:
        >>> brief({"turn": 1, "texts": ["It is 7."], "confidence": None, "weight": 0.645656})
        'turn 1, weight 0.6457'
    """
    said = {name: value for name, value in note.items() if isinstance(value, str | int | float)}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in said.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def texts_of(note: Note) -> list[str]:
    """Return the longer texts of a note, in their order."""
    lists = (value for value in note.values() if isinstance(value, list | tuple))
    return [str(text) for texts in lists for text in texts]


def in_lines(said: Mapping[str, Sequence[Note]]) -> str:
    """Return a line for each note, with the teacher's name in front."""
    return "\n".join(f"{teacher}: {brief(note)}" for teacher, notes in said.items() for note in notes)
