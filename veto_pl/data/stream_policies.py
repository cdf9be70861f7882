"""The policies of `overlong` for a stream: each row is judged alone, and only the first of a kind is warned of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.collate import Encoded
from veto_pl.data.control_words import ControlWords
from veto_pl.data.overlong import Overlong, OverlongCompletions, check_policy, remark_text
from veto_pl.data.unknown_text import unknown_message
from veto_pl.exceptions import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENOUGH = 1000
"""Tokens of a stream of which a share says something."""


def prompts_fit(rows: Iterable[Encoded], *, max_prompt_tokens: int, overlong: Overlong) -> Iterator[Encoded]:
    """Apply the policy for long prompts."""
    check_policy("overlong", overlong, Overlong)
    told = False
    for row in rows:
        length = len(row.prompt_ids)
        if length <= max_prompt_tokens:
            yield row
            continue
        found = f"Prompt {row.number + 1} (train) has {length} tokens and max_prompt_tokens={max_prompt_tokens}"
        if overlong == "error":
            raise DataError(f"{found}: it may not be used. Raise the limit or truncate.")
        if not told:
            done = "dropped" if overlong == "drop" else "cut to their last tokens, or dropped where they have images"
            rank_zero_warn(f"{found}: it and all such prompts of the stream are {done}.")
            told = True
        if overlong == "truncate_left" and not row.pictures:
            yield replace(row, prompt_ids=row.prompt_ids[-max_prompt_tokens:])


def completions_fit(
    rows: Iterable[Encoded], *, max_completion_tokens: int, overlong: OverlongCompletions
) -> Iterator[Encoded]:
    """Apply the policy for references that were cut."""
    check_policy("overlong_completions", overlong, OverlongCompletions)
    told = False
    for row in rows:
        if not row.cut:
            yield row
            continue
        length = max_completion_tokens + row.cut
        found = (
            f"Reference {row.number + 1} (train) has {length} tokens and max_completion_tokens={max_completion_tokens}"
        )
        if overlong == "error":
            raise DataError(f"{found}: it may not be used. Raise the limit, or cut it.")
        if not told:
            done = (
                "dropped"
                if overlong == "drop"
                else "cut and have no EOS, so what is trained on them does not learn to end"
            )
            rank_zero_warn(f"{found}: it and all such references of the stream are {done}.")
            told = True
        if overlong == "cut":
            yield row


def with_remarks(rows: Iterable[Encoded], *, words: ControlWords) -> Iterator[Encoded]:
    """Yield the same rows, and warn of the first row with each remark."""
    told: set[str] = set()
    for row in rows:
        for remark in set(row.remarks) - told:
            rank_zero_warn(f"Row {row.number + 1} and perhaps more {remark_text(remark, row.example, words, 'train')}.")
        told |= {*row.remarks}
        yield row


def known_text(rows: Iterable[Encoded], *, tokenizer: PreTrainedTokenizerBase, allowed: float) -> Iterator[Encoded]:
    """Yield the rows of a stream, up to where more of them is unknown than may be; a share is known after 1,000 tokens.

    Raises:
        DataError: it is more.
    """
    found = total = 0
    for row in rows:
        found += row.unknown
        total += len(row.prompt_ids) + len(row.completion_ids)
        if found > allowed * max(total, _ENOUGH if allowed else 0):
            raise DataError(unknown_message(f"{found} of {total} tokens", row.example, row.number, tokenizer))
        yield row
