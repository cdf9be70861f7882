"""A transformers causal language model, seen as a backbone, a head and a decoding step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from veto_pl.functional.alignment import restrict
from veto_pl.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")


class CausalLM(nn.Module):
    """Splits a model into the backbone and the head, and restricts the head to the real vocabulary.

    Args:
        model: any decoder-only transformers model.
        vocab_size: number of ids that the tokenizer knows; rows of the head beyond it are padding and never get
            probability.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size

    @property
    def head_rows(self) -> int:
        """Rows of the head's matrix, padding included."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def forward(self, sequences: Sequences, readout: Callable[[Tensor, CausalLM], Result]) -> Result:
        """Runs the backbone and hands the predicting positions to `readout`, inside this module's forward.

        The head runs in here so that sharded weights are gathered when it does.

        Args:
            sequences: B rows; only positions that predict a completion token are read out.
            readout: gets the hidden states [N, D] of these positions, row by row, and this model for its head.

        Returns:
            What `readout` returns.
        """
        output = self.model.base_model(
            input_ids=sequences.input_ids,
            attention_mask=sequences.attention_mask.long(),
            position_ids=sequences.position_ids,
            use_cache=False,
        )
        return readout(output.last_hidden_state[:, :-1][sequences.predictions], self)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The head: hidden states [..., D] to float32 logits [..., V] over the real vocabulary.

        Returns:
            The logits, and [...] the probability that the padding rows of the head would have taken.
        """
        return restrict(self._finish(self.model.get_output_embeddings()(hidden)), self.vocab_size)

    def next_logp(self, input_ids: Tensor, attention_mask: Tensor, cache: Any) -> Tensor:
        """One decoding step: log-probabilities [B, V] of the token after the last of `input_ids`.

        Args:
            input_ids: [B, L] the tokens that `cache` does not hold yet.
            attention_mask: [B, M] bool over all tokens so far, the new ones last.
            cache: a transformers cache; it is extended in place.
        """
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
        output = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits, _ = self.project(output.last_hidden_state[:, -1])
        return torch.log_softmax(logits, -1)

    def _finish(self, logits: Tensor) -> Tensor:
        """What some architectures do to the head's output: scale (Cohere, Granite), soft-cap (Gemma)."""
        config, logits = self.model.config, logits.float()
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits


@contextmanager
def sampling_mode(model: CausalLM) -> Iterator[None]:
    """Without dropout, gradients and activation checkpointing; each module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
