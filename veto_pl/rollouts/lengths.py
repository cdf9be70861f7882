"""Prompts of equal length, for models that write other texts behind padding."""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.probes import close
from veto_pl.types import PromptBatch

_minds: WeakKeyDictionary[CausalLM, bool] = WeakKeyDictionary()


def minds_padding(model: CausalLM) -> bool:
    """Return whether `generate` writes other texts for a prompt beside longer ones: tried out once, on two prompts.

    The weights must be whole, and the model in evaluation mode. A model that does is warned of, for it takes longer.
    """
    if model not in _minds:
        _minds[model] = not _writes_the_same(model)
        if _minds[model]:
            warnings.warn(
                f"{type(model.model).__name__} writes other texts behind padding, so only prompts of equal length are "
                "completed together, which takes longer.",
                stacklevel=4,
            )
    return _minds[model]


def of_equal_length(prompts: PromptBatch) -> list[Tensor]:
    """Return the rows of each length, [K] int64, the shortest first."""
    lengths = prompts.attention_mask.sum(1)
    return [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]


def without_padding(prompts: PromptBatch) -> PromptBatch:
    """Return left-padded prompts without the columns that are padding in all of them."""
    used = max(int(prompts.attention_mask.sum(1).max()), 1)
    return prompts.narrowed(used)


def _writes_the_same(model: CausalLM) -> bool:
    """Two tokens: the first is read off the prompts, the second off what is remembered of them."""
    device = next(model.parameters()).device
    ids = torch.tensor([[0, 0, 0, 1], [1, 2, 3, 4]], device=device) % model.vocab_size
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]], device=device)
    beside, alone = _logits(model, ids, mask), _logits(model, ids[:1, 3:], mask[:1, 3:])
    return all(close(model, one[:1], other) for one, other in zip(beside, alone, strict=True))


def _logits(model: CausalLM, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """The logits of two steps; what is written in the first is token 1, whatever the model would write."""

    def choose(_: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.ones(1, dtype=torch.int64, device=ids.device), 0)

    output = model.model.generate(
        ids, attention_mask=mask, max_new_tokens=2, do_sample=False, logits_processor=[choose], output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return [logits[:, : model.vocab_size].float() for logits in output.logits]
