"""Counts text that a tokenizer does not know: it would be trained on as `<unk>`, or as nothing, without a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from veto_pl.data.tokenising import tokenise
from veto_pl.seams import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STRANGE = "\U00013171"
"""A hieroglyph, which no vocabulary has: only a tokenizer that falls back on bytes can write it."""


class _Kind(NamedTuple):
    """What a tokenizer writes for text that it does not know: an id, or nothing at all."""

    unknown: int | None
    drops: bool
    seen: dict[str, bool]  # whether a character is unknown


_kinds: WeakKeyDictionary[PreTrainedTokenizerBase, _Kind] = WeakKeyDictionary()


class Ids(Protocol):
    """What is counted in: an example and its ids."""

    @property
    def example(self) -> Example:
        """Return the example."""
        ...

    @property
    def prompt_ids(self) -> list[int]:
        """Return the ids of the prompt."""
        ...

    @property
    def completion_ids(self) -> list[int]:
        """Return the ids of the reference."""
        ...


class UnknownText:
    """What a tokenizer does not know: it writes one id for it, or leaves it out.

    Args:
        tokenizer: one that falls back on bytes knows every text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer not in _kinds:
            strange, unknown = tokenise([_STRANGE], tokenizer)[0], tokenizer.unk_token_id
            _kinds[tokenizer] = _Kind(unknown if unknown in strange else None, not strange, {})
        self.tokenizer, self.kind = tokenizer, _kinds[tokenizer]

    def count(self, row: Ids) -> int:
        """Count the ids of a row that stand for unknown text, or the characters that have none."""
        if self.kind.drops:
            return sum(text.count(c) for text in _texts(row.example) for c in self.characters([text]))
        unknown = self.kind.unknown
        return 0 if unknown is None else row.prompt_ids.count(unknown) + row.completion_ids.count(unknown)

    def characters(self, texts: Iterable[str]) -> str:
        """Return the characters of some texts that the tokenizer does not know one by one, each once."""
        found, seen = sorted({character for text in texts for character in text}), self.kind.seen
        new = [character for character in found if character not in seen]
        for character, ids in zip(new, tokenise(new, self.tokenizer), strict=True):
            seen[character] = self.kind.unknown in ids or (not ids and not character.isspace())
        return "".join(filter(seen.__getitem__, found))


def unknown_message(found: str, example: Example, place: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what is to be said of unknown text.

    Args:
        found: how much of what, such as `5 of 1000 tokens`.
        example: the first row that has some.
        place: of that row.
        tokenizer: that does not know it.
    """
    unknown = UnknownText(tokenizer)
    which = unknown.characters(_texts(example))
    read = "left out" if unknown.kind.drops else f"`{tokenizer.unk_token}`"
    return (
        f"{found} are {read}: the tokenizer does not know {f'the characters {which[:20]!r}' if which else 'the text'} "
        f"of row {place + 1}, {example.prompt[:40]!r}. Name another `model.tokenizer`, mend the rows, or allow a share "
        "of the tokens by `data.unknown`."
    )


def _texts(example: Example) -> list[str]:
    said = () if example.conversation is None else example.conversation.messages
    texts = [message.get("content") for message in said] or [example.prompt, example.completion]
    return [text for text in texts if isinstance(text, str)]
