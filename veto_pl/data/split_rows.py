"""Encodes the rows of a split, and judges them as a whole: what is too long, what is unknown, what is to be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.collate import Collator
from veto_pl.data.control_words import ControlWords
from veto_pl.data.encoding import EncodedRows, encode_rows
from veto_pl.data.overlong import (
    Overlong,
    OverlongCompletions,
    check_known,
    fit_completions,
    fit_prompts,
    report_remarks,
)
from veto_pl.data.stream_policies import completions_fit, known_text, prompts_fit, with_remarks
from veto_pl.data.streaming import EncodedStream
from veto_pl.exceptions import DataError
from veto_pl.seams import Example


@dataclass(frozen=True)
class RowPolicy:
    """What becomes of rows that are too long or hold text that the tokenizer does not know.

    Args:
        max_prompt_tokens: tokens that a prompt may have.
        max_completion_tokens: tokens that a reference may have.
        overlong: for longer prompts.
        overlong_completions: for longer references in training.
        unknown: the share of the tokens of a split that may stand for unknown text.
        shuffle_buffer: rows of a stream among which the next one is drawn.
    """

    max_prompt_tokens: int
    max_completion_tokens: int
    overlong: Overlong
    overlong_completions: OverlongCompletions
    unknown: float
    shuffle_buffer: int

    def encoded(
        self, examples: Sequence[Example], collator: Collator, split: str, *, name: str | None, processes: int
    ) -> EncodedRows:
        """Return the encoded rows of a split; of those that are not trained on, every reference is kept.

        Raises:
            DataError: rows are refused, or none are left.
        """
        rows = encode_rows(examples, collator, name=name, processes=processes)
        check_known(rows, collator.tokenizer, allowed=self.unknown, split=split)
        report_remarks(rows, ControlWords(collator.tokenizer), split)
        if split == "train":  # those of other splits are judged by, not trained on
            limit, policy = self.max_completion_tokens, self.overlong_completions
            rows = fit_completions(rows, max_completion_tokens=limit, overlong=policy, split=split)
        return fit_prompts(rows, max_prompt_tokens=self.max_prompt_tokens, overlong=self.overlong, split=split)

    def streamed(self, examples: Iterable[Example], collator: Collator) -> EncodedStream:
        """Return the training rows of a stream, which are judged one by one."""
        known = partial(known_text, tokenizer=collator.tokenizer, allowed=self.unknown)
        prompts = partial(prompts_fit, max_prompt_tokens=self.max_prompt_tokens, overlong=self.overlong)
        limit, policy = self.max_completion_tokens, self.overlong_completions
        completions = partial(completions_fit, max_completion_tokens=limit, overlong=policy)
        remarked = partial(with_remarks, words=ControlWords(collator.tokenizer))
        return EncodedStream(examples, collator, (known, remarked, completions, prompts), self.shuffle_buffer)


def report_no_rows(split: str, examples: Sequence[Example]) -> None:
    """Raise `DataError` for a split without rows; only warn where the task has a file but no validation rows."""
    origin = getattr(examples, "origin", None)
    what = f"{origin}: no" if origin else "The task has no"
    why = getattr(examples, "remark", "") or "It is empty or blank, or a limit leaves nothing."
    message = f"{what} rows for the split `{split}`, expected at least one. {why if origin else 'Check its files.'}"
    if split != "validation":
        raise DataError(message)
    if origin:
        rank_zero_warn(message)
