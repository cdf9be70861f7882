"""Which prompts `generate` completes together: some models write other texts behind padding, or beside other rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from veto_pl.models.probes import close
from veto_pl.seams import LanguageModel, PromptBatch

Part = tuple[Tensor, int]
"""Rows of a batch of prompts, [K] int64, and how many completions each of them gets."""
Grouping = Callable[[PromptBatch, int], list[Part]]


def together(prompts: PromptBatch, copies: int) -> list[Part]:
    """Return one part with all rows."""
    return [(torch.arange(len(prompts), device=prompts.input_ids.device), copies)]


def by_length(prompts: PromptBatch, copies: int) -> list[Part]:
    """Return a part for each length that there is, the shortest first."""
    lengths = prompts.attention_mask.sum(1)
    return [((lengths == length).nonzero()[:, 0], copies) for length in sorted(set(lengths.tolist()))]


def one_by_one(prompts: PromptBatch, copies: int) -> list[Part]:
    """Return a part for each completion of each row."""
    rows = torch.arange(len(prompts), device=prompts.input_ids.device)
    return [(row[None], 1) for row in rows for _ in range(copies)]


_groupings: WeakKeyDictionary[LanguageModel, Grouping] = WeakKeyDictionary()


def grouping_for(model: LanguageModel) -> Grouping:
    """Return the widest grouping in which the model writes for a prompt what it writes for it alone.

    It is tried out once for each model, and one that has no wide grouping is warned of. The model's weights must be
    whole, and its generation settings out of the way.
    """
    if model not in _groupings:
        padded, beside = ([0, 0, 0, 1], [1, 2, 3, 4]), ([3, 1], [1, 2])
        if _same_logits(model, *padded):
            _groupings[model] = together
        elif _same_logits(model, *beside):
            _groupings[model] = by_length
            _warn_slow(model, "behind padding, so only prompts of equal length are completed together")
        else:
            _groupings[model] = one_by_one
            _warn_slow(model, "in a batch, so its completions are written one by one")
    return _groupings[model]


def without_padding(prompts: PromptBatch) -> PromptBatch:
    """Return left-padded prompts without the columns that are padding in all of them."""
    used = slice(-max(int(prompts.attention_mask.sum(1).max()), 1), None)
    return replace(prompts, input_ids=prompts.input_ids[:, used], attention_mask=prompts.attention_mask[:, used])


def _warn_slow(model: LanguageModel, what: str) -> None:
    warnings.warn(
        f"`generate` of {type(model.model).__name__} writes other texts {what}, which takes longer.", stacklevel=5
    )


def _same_logits(model: LanguageModel, row: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two steps give `row`, in which 0 is padding, the logits beside `other` that they give it alone.

    The first token is read off the prompt, the second off what is remembered of it.
    """
    ids = torch.tensor([row, other], device=next(model.parameters()).device)
    mask = (ids > 0).long()
    used = slice(len(row) - int(mask[0].sum()), None)
    ids = ids % model.vocab_size
    beside, alone = _logits(model, ids, mask), _logits(model, ids[:1, used], mask[:1, used])
    return all(close(model, one[:1], other) for one, other in zip(beside, alone, strict=True))


def _logits(model: LanguageModel, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the logits of two steps, [R, V] each; the first step writes token 1, whatever the model would write."""

    def choose(_: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.ones(1, dtype=torch.int64, device=ids.device), 0)

    output = model.model.generate(
        ids, attention_mask=mask, max_new_tokens=2, do_sample=False, logits_processor=[choose], output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return [logits[:, : model.vocab_size].float() for logits in output.logits]
