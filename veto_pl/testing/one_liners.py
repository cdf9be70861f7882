"""Functions as users name them in place of a reward or a template."""

from collections.abc import Mapping
from typing import Any


def share_of_words(completion: str, reference: str | None, row: Mapping[str, Any]) -> float:
    """Return the share of the reference's words that occur in the completion."""
    words = (reference or "").split()
    return sum(word in completion for word in words) / max(len(words), 1)


def asked(prompt: str, row: Mapping[str, Any]) -> str:
    """Return the prompt as a question."""
    return f"Q: {prompt}\nA: "


def share_of_letters(completion: str, reference: str | None, row: Mapping[str, Any]) -> float:
    """Return the share of the reference's characters that occur in the completion."""
    letters = set(reference or "")
    return sum(letter in completion for letter in letters) / max(len(letters), 1)
