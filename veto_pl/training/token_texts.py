"""What each token of a text adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text that each token adds; together they are the decoded text, without special tokens.

    A token that holds a part of a character adds nothing: the one that completes the character adds all of it.
    """
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    texts, written = [], 0
    for length in range(1, len(ids)):
        so_far = tokenizer.decode(ids[:length], skip_special_tokens=True)
        reached = max(written, _common_prefix(so_far, whole))
        texts.append(whole[written:reached])
        written = reached
    return [*texts, whole[written:]] if ids else []


def _common_prefix(text: str, whole: str) -> int:
    """Return how many characters both texts begin with in common."""
    differing = (i for i, (one, other) in enumerate(zip(text, whole, strict=False)) if one != other)
    return next(differing, min(len(text), len(whole)))
