"""What happens to prompts that are longer than a run allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.collate import Encoded
from veto_pl.exceptions import ConfigurationError, DataError

Overlong = Literal["drop", "truncate_left", "error"]


def fit_prompts(rows: Sequence[Encoded], *, max_prompt_tokens: int, overlong: Overlong, split: str) -> list[Encoded]:
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
    if overlong not in get_args(Overlong):
        raise ConfigurationError(f"`overlong` must be one of {', '.join(get_args(Overlong))}, got {overlong!r}.")
    long = [row for row in rows if len(row.prompt_ids) > max_prompt_tokens]
    if not long:
        return list(rows)
    found = f"{len(long)} of {len(rows)} prompts ({split}) exceed max_prompt_tokens={max_prompt_tokens}"
    if overlong == "error" or (overlong == "drop" and len(long) == len(rows)):
        longest = max(len(row.prompt_ids) for row in long)
        raise DataError(f"{found}, the longest has {longest}: none may be used. Raise the limit or truncate them.")
    if overlong == "drop":
        rank_zero_warn(f"{found}: dropped.")
        return [row for row in rows if len(row.prompt_ids) <= max_prompt_tokens]
    rank_zero_warn(f"{found}: their first tokens are cut.")
    return [replace(row, prompt_ids=row.prompt_ids[-max_prompt_tokens:]) for row in rows]
