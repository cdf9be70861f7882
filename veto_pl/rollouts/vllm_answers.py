"""What vLLM is asked for, and what its answers are as sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.sampling import Sampling
from veto_pl.rollouts.endings import Endings
from veto_pl.rollouts.token_buffer import assemble
from veto_pl.seams import Ending, PromptBatch, Sequences, pad_right


def settings_of(sampling: Sampling, ends: Sequence[int], seed: int) -> dict[str, Any]:
    """Return vLLM's settings of one request by name; `ends` names every id that ends a completion."""
    return {
        "n": 1 if sampling.temperature == 0 else sampling.num_completions,  # vLLM refuses several greedy ones
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed,
        "stop": list(sampling.stop) or None,
        "stop_token_ids": list(ends),
        "ignore_eos": True,  # `stop_token_ids` names every id that ends a completion
        "logprobs": 0,  # of the drawn token alone
        "skip_special_tokens": not sampling.stop,  # vLLM looks for stop strings in this text, and one may be special
    }


def as_sequences(
    prompts: PromptBatch, sampling: Sampling, endings: Endings, answers: Iterable[Any], *, on_policy: bool
) -> Sequences:
    """Turn vLLM's answers, which come in the order of the requests, into sequences.

    The completions of a request are sorted by their `index`. A greedy one stands for all of its prompt.
    """
    device, greedy = prompts.input_ids.device, sampling.temperature == 0
    sorted_outputs = (sorted(answer.outputs, key=lambda one: int(one.index)) for answer in answers)
    written = [one for outputs in sorted_outputs for one in outputs * (sampling.num_completions if greedy else 1)]
    ids, lived = pad_right([torch.tensor(list(one.token_ids), dtype=torch.int64) for one in written])
    logp, _ = pad_right([torch.tensor(_drawn_logp(one)) for one in written])
    if greedy:
        logp = torch.zeros_like(logp)  # vLLM reports the model's own distribution, and greedy decoding has no choice
    moved = (tensor.to(device) for tensor in (ids, lived, logp))
    ended = endings_of(written, endings)
    return assemble(prompts, sampling.num_completions, *moved, ended=ended, on_policy=on_policy)


def endings_of(written: Sequence[Any], endings: Endings) -> tuple[Tensor, Tensor]:
    """Return why each completion ends, as vLLM says it, [R], and the characters that are not judged for that, [R]."""
    why = [_ending_of(one) for one in written]
    behind = [
        endings.unjudged(list(one.token_ids)) if end == Ending.STOP else 0
        for one, end in zip(written, why, strict=True)
    ]
    ending, unjudged = (torch.tensor(values, dtype=torch.int64, device=endings.ends.device) for values in (why, behind))
    return ending, unjudged


def _ending_of(completion: Any) -> Ending:
    if completion.finish_reason != "stop":
        return Ending.LIMIT
    # The reason is the string, or the id among `stop_token_ids`.
    return Ending.STOP if isinstance(completion.stop_reason, str) else Ending.EOS


def _drawn_logp(completion: Any) -> list[float]:
    return [float(at[token].logprob) for token, at in zip(completion.token_ids, completion.logprobs, strict=True)]
