"""Finds control words such as `<|im_end|>` in a row's own text, where they may be text or meant as tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from veto_pl.seams import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reading = Literal["text", "tokens"]
"""What control words in a row's own text become."""
MARK = "\ufdd0"
"""Stands within a control word that is text, while a template puts it in place: a character that no text may hold."""


def remove_marks(text: str) -> str:
    """Return the text without marks: its control words become tokens."""
    return text.replace(MARK, "")


def unmarked(value: Any) -> Any:
    """Return a message, or what one holds, with all its texts without marks."""
    return _inside(value, remove_marks)


def remove_json_marks(told: str) -> str:
    """Return a JSON text as if nothing had been marked in it."""
    return told.replace("\\ufdd0", "")


class ControlWords:
    """The words that a tokenizer reads as one token wherever they stand.

    Args:
        tokenizer: names them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
        known = {word for word, token in added.items() if token.special} | set(tokenizer.all_special_tokens)
        words = sorted(filter(None, known), key=len, reverse=True)
        self._added = added
        self.words = words
        self._initials, self._finals = ({word[place] for word in words} for place in (0, -1))
        # Without words, a pattern that is found nowhere.
        self.pattern = re.compile("|".join(map(re.escape, words)) if words else r"(?!)")

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.pattern.fullmatch(word) is not None

    def within(self, text: str) -> str:
        """Return the first control word of a text; empty where it holds none."""
        if not any(initial in text for initial in self._initials):  # which is quick to see
            return ""
        found = self.pattern.search(text)
        return "" if found is None else found[0]

    def at_end(self, text: str) -> str:
        """Return the control word that a text ends with; empty where it ends otherwise."""
        if not any(text.endswith(final) for final in self._finals):
            return ""
        return next((word for word in self.words if text.endswith(word)), "")

    def first(self, example: Example) -> str:
        """Return the first control word of an example's own text; empty where it holds none."""
        return next(filter(None, map(self.within, _own_texts(example))), "")

    def inside(self, example: Example) -> set[str]:
        """Return all control words of an example's own text."""
        return {word for text in _own_texts(example) for word in self.pattern.findall(text)}

    def mark_words(self, example: Example) -> Example:
        """Return the example with a mark in each control word, so that none is one any more."""
        return _changed(example, self._mark)

    def remove_words(self, example: Example) -> Example:
        """Return the example without control words."""
        return _changed(example, partial(self.pattern.sub, ""))

    def marked(self, value: Any) -> Any:
        """Return a message, or what one holds, with a mark in each control word of its texts."""
        return _inside(value, self._mark)

    def parts(self, text: str) -> list[tuple[str, Reading]]:
        """Split a rendered text into pieces to read as text, which held marked words, and pieces to read as tokens.

        Marks are taken away. The control words on both sides of a piece of text eat white space as the tokenizer would
        let them.

        The words on both sides of such a piece eat white space as the tokenizer would let them.
        """
        pieces = re.split(f"({self.pattern.pattern})", text)
        parts: list[tuple[str, Reading]] = []
        for i, piece in enumerate(pieces):
            if MARK in piece:
                before, after = (self._added.get(pieces[j]) if 0 < j < len(pieces) else None for j in (i - 1, i + 1))
                piece = piece.lstrip() if before is not None and before.rstrip else piece
                piece = piece.rstrip() if after is not None and after.lstrip else piece
                parts.append((remove_marks(piece), "text"))
            elif piece and parts and parts[-1][1] == "tokens":
                parts[-1] = (parts[-1][0] + piece, "tokens")
            elif piece:
                parts.append((piece, "tokens"))
        return parts

    def _mark(self, text: str) -> str:
        while self.within(text):  # words may overlap
            text = self.pattern.sub(lambda word: word[0][0] + MARK + word[0][1:], text)
        return text


def _own_texts(example: Example) -> list[str]:
    said = example.conversation
    return _texts([example.prompt, example.row, [] if said is None else [*said.messages, *said.tools]])


def _texts(value: Any) -> list[str]:
    """Return all texts inside of lists and mappings."""
    if isinstance(value, str):
        return [value]
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for entry in entries for text in _texts(entry)]


def _inside(value: Any, change: Callable[[str], str]) -> Any:
    """Change all texts inside of lists and mappings."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _inside(entry, change) for key, entry in value.items()}
    return type(value)(_inside(entry, change) for entry in value) if isinstance(value, list | tuple) else value


def _changed(example: Example, change: Callable[[str], str]) -> Example:
    inside = partial(_inside, change=change)
    said = None if example.conversation is None else example.conversation.with_texts(inside)
    return replace(example, prompt=change(example.prompt), row=inside(example.row), conversation=said)
