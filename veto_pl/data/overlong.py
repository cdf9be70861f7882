"""What happens to prompts that are longer than a run allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.collate import Encoded
from veto_pl.data.encoding import EncodedRows
from veto_pl.exceptions import ConfigurationError, DataError

Overlong = Literal["drop", "truncate_left", "error"]


def fit_prompts(rows: EncodedRows, *, max_prompt_tokens: int, overlong: Overlong, split: str) -> EncodedRows:
    """Applies the policy and reports how many prompts it met.

    Args:
        rows: encoded rows of any prompt length.
        max_prompt_tokens: tokens that a prompt may have.
        overlong: `drop` leaves longer prompts out, `truncate_left` keeps their last tokens, `error` refuses them.
        split: what the rows are called in messages.

    Raises:
        ConfigurationError: for an unknown policy.
        DataError: for a longer prompt under `error`, or where no row is left under `drop`.
    """
    check_overlong(overlong)
    lengths = rows.prompt_lengths
    fitting = lengths <= max_prompt_tokens
    if fitting.all():
        return rows
    long = len(rows) - int(fitting.sum())
    found = f"{long} of {len(rows)} prompts ({split}) exceed max_prompt_tokens={max_prompt_tokens}"
    if overlong == "error" or (overlong == "drop" and long == len(rows)):
        raise DataError(
            f"{found}, the longest has {lengths.max()}: none may be used. Raise the limit or truncate them."
        )
    if overlong == "drop":
        rank_zero_warn(f"{found}: dropped.")
        return rows.only(fitting)
    rank_zero_warn(f"{found}: their first tokens are cut.")
    return rows.cut(max_prompt_tokens)


def fit_stream(rows: Iterable[Encoded], *, max_prompt_tokens: int, overlong: Overlong, split: str) -> Iterator[Encoded]:
    """Applies the policy to rows of an unknown number, and reports the first prompt that it meets."""
    check_overlong(overlong)
    told = False
    for row in rows:
        length = len(row.prompt_ids)
        if length <= max_prompt_tokens:
            yield row
            continue
        found = f"Prompt {row.number + 1} ({split}) has {length} tokens and max_prompt_tokens={max_prompt_tokens}"
        if overlong == "error":
            raise DataError(f"{found}: it may not be used. Raise the limit or truncate.")
        if not told:
            done = "dropped" if overlong == "drop" else "cut to their last tokens"
            rank_zero_warn(f"{found}: it and all such prompts of the stream are {done}.")
            told = True
        if overlong == "truncate_left":
            yield replace(row, prompt_ids=row.prompt_ids[-max_prompt_tokens:])


def check_overlong(overlong: str) -> None:
    """Raises `ConfigurationError` for an unknown policy."""
    if overlong not in get_args(Overlong):
        raise ConfigurationError(f"`overlong` must be one of {', '.join(get_args(Overlong))}, got {overlong!r}.")
