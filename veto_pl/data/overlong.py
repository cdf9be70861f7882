"""What happens to prompts and references that are longer than a run allows, and what is said of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.collate import Encoded
from veto_pl.data.control_words import ControlWords
from veto_pl.exceptions import ConfigurationError, DataError

Overlong = Literal["drop", "truncate_left", "error"]
OverlongCompletions = Literal["cut", "drop", "error"]

REMARKS = {
    "tokens": "prompts ({split}) hold control words such as `{word}` in the text of their rows: they are read as "
    "control tokens. If they are text, set `control_words: text` in `data.template`",
    "text": "prompts ({split}) hold control words such as `{word}` in the text of their rows: they are read as text. "
    "If they are meant as control tokens, set `control_words: tokens` in `data.template`",
    "completion": "references ({split}) hold control words such as `{word}` before their end: they are trained on as "
    "control tokens. Leave out or mend these rows if they are text",
}
"""By the key that a row has: what the rows of a split have in common."""


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


def fit_completions(
    rows: Sequence[Encoded], *, max_completion_tokens: int, overlong: OverlongCompletions, split: str
) -> list[Encoded]:
    """Applies the policy to references that were cut, and reports how many there are.

    Args:
        rows: encoded rows, whose references are as long as they may be at most.
        max_completion_tokens: tokens that a reference may have, EOS included.
        overlong: `cut` keeps the rows, whose references then have no EOS; `drop` leaves them out, `error` refuses them.
        split: what the rows are called in messages.

    Raises:
        ConfigurationError: for an unknown policy.
        DataError: for a longer reference under `error`, or where no row is left under `drop`.
    """
    if overlong not in get_args(OverlongCompletions):
        known = ", ".join(get_args(OverlongCompletions))
        raise ConfigurationError(f"`overlong_completions` must be one of {known}, got {overlong!r}.")
    cut = [row for row in rows if row.cut]
    if not cut:
        return list(rows)
    found = f"{len(cut)} of {len(rows)} references ({split}) exceed max_completion_tokens={max_completion_tokens}"
    if overlong == "error" or (overlong == "drop" and len(cut) == len(rows)):
        longest = max(len(row.completion_ids) + row.cut for row in cut)
        raise DataError(f"{found}, the longest has {longest}: none may be used. Raise the limit, or cut them.")
    if overlong == "drop":
        rank_zero_warn(f"{found}: dropped.")
        return [row for row in rows if not row.cut]
    rank_zero_warn(
        f"{found}: they are cut and have no EOS, so what is trained on them does not learn to end. Raise the limit, or "
        "set `data.overlong_completions: drop`."
    )
    return list(rows)


def report_remarks(rows: Sequence[Encoded], words: ControlWords, split: str) -> None:
    """Warns once for each thing that has to be said of rows, with their number.

    Args:
        rows: encoded rows.
        words: the tokenizer's control words.
        split: what the rows are called in messages.
    """
    for remark, text in REMARKS.items():
        if said := [row.example for row in rows if remark in row.remarks]:
            of_reference = words.within(said[0].completion or "")
            word = of_reference if remark == "completion" else words.first(said[0])
            rank_zero_warn(f"{len(said)} of {len(rows)} {text.format(split=split, word=word)}.")
