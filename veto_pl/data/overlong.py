"""Policies for rows that are longer than a run allows or hold unknown text, and warnings about rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.control_words import ControlWords
from veto_pl.data.encoding import EncodedRows
from veto_pl.data.unknown_text import unknown_message
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
"""Warnings by the key that rows carry in `Encoded.remarks`; `{split}` and `{word}` are filled in."""


def fit_prompts(rows: EncodedRows, *, max_prompt_tokens: int, overlong: Overlong, split: str) -> EncodedRows:
    """Apply the policy to prompts that are too long, and report how many there are.

    Args:
        rows: encoded rows of any prompt length.
        max_prompt_tokens: tokens that a prompt may have.
        overlong: `drop` leaves longer prompts out, `truncate_left` keeps their last tokens, `error` refuses them. A
            prompt with images is never cut: it is dropped then.
        split: what the rows are called in messages.

    Raises:
        ConfigurationError: for an unknown policy.
        DataError: for a longer prompt under `error`, or where no row is left under `drop`.
    """
    check_policy("overlong", overlong, Overlong)
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
    whole = ~fitting & rows.with_images
    if whole.all():
        raise DataError(f"{found}, and all have images, which are never cut. Raise the limit.")
    if whole.any():
        rank_zero_warn(f"{found}: the first tokens of those without images are cut, {whole.sum()} with images dropped.")
        rows = rows.only(~whole)
    else:
        rank_zero_warn(f"{found}: their first tokens are cut.")
    return rows.cut(max_prompt_tokens)


def fit_completions(
    rows: EncodedRows, *, max_completion_tokens: int, overlong: OverlongCompletions, split: str
) -> EncodedRows:
    """Apply the policy to references that were cut, and report how many there are.

    Args:
        rows: encoded rows, whose references are as long as they may be at most.
        max_completion_tokens: tokens that a reference may have, EOS included.
        overlong: `cut` keeps the rows, whose references then have no EOS; `drop` leaves them out, `error` refuses them.
        split: what the rows are called in messages.

    Raises:
        ConfigurationError: for an unknown policy.
        DataError: for a longer reference under `error`, or where no row is left under `drop`.
    """
    check_policy("overlong_completions", overlong, OverlongCompletions)
    cut = rows.cut_tokens
    count = int((cut > 0).sum())
    if not count:
        return rows
    found = f"{count} of {len(rows)} references ({split}) exceed max_completion_tokens={max_completion_tokens}"
    if overlong == "error" or (overlong == "drop" and count == len(rows)):
        longest = max_completion_tokens + cut.max()
        raise DataError(f"{found}, the longest has {longest}: none may be used. Raise the limit, or cut them.")
    if overlong == "drop":
        rank_zero_warn(f"{found}: dropped.")
        return rows.only(cut == 0)
    rank_zero_warn(
        f"{found}: they are cut and have no EOS, so what is trained on them does not learn to end. Raise the limit, or "
        "set `data.overlong_completions: drop`."
    )
    return rows


def check_known(rows: EncodedRows, tokenizer: PreTrainedTokenizerBase, *, allowed: float, split: str) -> None:
    """Refuse rows of which too much is unknown to the tokenizer.

    Args:
        rows: encoded rows.
        tokenizer: that encoded them.
        allowed: the share of their tokens that may stand for unknown text.
        split: what the rows are called in messages.

    Raises:
        DataError: it is more.
    """
    counts = rows.unknown_tokens
    share = counts.sum() / max(rows.total_tokens, 1)
    if share > allowed:
        touched = counts > 0
        told = f"{counts.sum()} tokens ({share:.2%}) of {touched.sum()} of {len(rows)} rows ({split})"
        place = int(touched.argmax())
        raise DataError(unknown_message(told, rows[place].example, place, tokenizer))


def report_remarks(rows: EncodedRows, words: ControlWords, split: str) -> None:
    """Warn once for each thing that has to be said of rows, with their number.

    Args:
        rows: encoded rows.
        words: the tokenizer's control words.
        split: what the rows are called in messages.
    """
    for remark in REMARKS:
        places = rows.remarked(remark).nonzero()[0]
        if len(places):
            said = remark_text(remark, rows[int(places[0])].example, words, split)
            rank_zero_warn(f"{len(places)} of {len(rows)} {said}.")


def remark_text(remark: str, example: Example, words: ControlWords, split: str) -> str:
    """Return the warning about rows with a remark, of which `example` is the first."""
    word = words.within(example.completion or "") if remark == "completion" else words.first(example)
    return REMARKS[remark].format(split=split, word=word)


def check_policy(setting: str, given: str, known: Any) -> None:
    """Raise `ConfigurationError` for a policy that is not among the known ones."""
    if given not in get_args(known):
        raise ConfigurationError(f"`{setting}` must be one of {', '.join(get_args(known))}, got {given!r}.")
