"""The decode loop: one token for every row at a time, with a KV cache for each model that takes part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from veto_pl.models.causal_lm import CausalLM, sampling_mode
from veto_pl.rollouts.sampling import Sampling
from veto_pl.types import Models, PromptBatch, Sequences

NextToken = Callable[[Tensor, Tensor], Tensor]
"""Maps the new ids [B, L] and the whole mask [B, M] to the distribution of the next token, [B, V]."""


def sampled_from(model: CausalLM, sampling: Sampling) -> NextToken:
    """The model's distribution, shaped by `sampling`."""
    step = _cached(model)
    return lambda ids, mask: sampling.shape(step(ids, mask))


def mixed(first: NextToken, second: NextToken, combine: Callable[[Tensor, Tensor], Tensor]) -> NextToken:
    """Two distributions over the same prefix, combined token by token."""
    return lambda ids, mask: combine(first(ids, mask), second(ids, mask))


def _cached(model: CausalLM) -> NextToken:
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=model.model.config)
    return lambda ids, mask: model.next_logp(ids, mask, cache)


def decode(
    prompts: PromptBatch,
    next_token: NextToken,
    sampling: Sampling,
    models: Models,
    generator: torch.Generator,
    *,
    writers: Sequence[CausalLM],
    on_policy: bool,
) -> Sequences:
    """Samples `sampling.num_completions` completions of every prompt.

    Args:
        prompts: B left-padded prompts.
        next_token: the sampling distribution, usually `sampled_from(model, sampling)`.
        sampling: lengths, counts and stop strings.
        models: names the ids that end a completion and decodes for stop strings.
        generator: draws the tokens; the global generators are not touched.
        writers: the models behind `next_token`; they are held in evaluation mode meanwhile.
        on_policy: how the rows are marked.

    Returns:
        B x num_completions rows, the completions of a prompt one after another, with the log-probabilities of the
        sampler. A completion ends with EOS, with the token that completes a stop string, or at `max_new_tokens`.
    """
    rows = torch.arange(len(prompts), device=prompts.input_ids.device).repeat_interleave(sampling.num_completions)
    repeated = prompts.rows(rows)
    with ExitStack() as stack:
        for model in writers:
            stack.enter_context(sampling_mode(model))
        ids, logp, mask = _loop(repeated, next_token, sampling, models, generator)
    return Sequences.join(
        repeated,
        ids,
        mask,
        prompts=prompts,
        prompt_rows=rows,
        on_policy=torch.full_like(rows, on_policy, dtype=torch.bool),
        sampler_logp=torch.cat([logp.new_zeros(repeated.input_ids.shape), logp], 1),
    )


def _loop(
    prompts: PromptBatch, next_token: NextToken, sampling: Sampling, models: Models, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, sampler log-probabilities and mask of the completions, each [B, C]."""
    ends = torch.tensor(models.eos_ids, device=prompts.input_ids.device)
    new, mask = prompts.input_ids, prompts.attention_mask
    alive = torch.ones(len(prompts), dtype=torch.bool, device=mask.device)
    ids, logps, lived = [], [], []
    for _ in range(sampling.max_new_tokens):
        logp = next_token(new, mask)
        new = torch.multinomial(logp.exp(), 1, generator=generator)
        ids.append(new.masked_fill(~alive[:, None], 0))
        logps.append(logp.gather(1, new).masked_fill(~alive[:, None], 0.0))
        lived.append(alive[:, None])
        mask = torch.cat([mask, alive[:, None]], 1)
        alive = alive & ~torch.isin(new[:, 0], ends)
        if sampling.stop:
            alive = alive & ~_stopped(torch.cat(ids, 1), torch.cat(lived, 1), sampling.stop, models)
        if not alive.any():
            break
    return torch.cat(ids, 1), torch.cat(logps, 1), torch.cat(lived, 1)


def _stopped(ids: Tensor, lived: Tensor, stop: Sequence[str], models: Models) -> Tensor:
    """Which rows hold a stop string. A token adds at least one byte, so only a short tail has to be decoded."""
    tail = max(len(text.encode()) for text in stop) + 1
    texts = [models.tokenizer.decode(row[alive][-tail:]) for row, alive in zip(ids, lived, strict=True)]
    return torch.tensor([any(s in text for s in stop) for text in texts], device=ids.device)
