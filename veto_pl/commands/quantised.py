"""`veto-pl quantised`: how far the models that a configuration quantises are from what they were before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.commands.prepared import Prepared
from veto_pl.data.splits import check_sizes
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.divergences import forward_kl
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.readout import read_hidden
from veto_pl.models.vocabulary import real_ids
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Models, Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.seams import ModelSource, PromptBatch

LARGEST = 512
"""Tokens whose vocabulary-sized rows are held."""


@dataclass(frozen=True)
class Gap:
    """How far a quantised model is from the same model before.

    Args:
        role: `student`, `teacher` or `reference`.
        tokens: that were compared.
        kl: mean of KL(full || quantised), in nats per token.
        agreement: share of tokens of which both have the same likeliest id.
    """

    role: str
    tokens: int
    kl: float
    agreement: float


def print_gaps(config: Sequence[str], *, rows: int) -> None:
    """Print the gap of each model that the configuration quantises, on validation prompts and their references.

    Args:
        config: the arguments of `veto-pl fit`.
        rows: of the validation split.

    Raises:
        ConfigurationError: nothing is quantised, or the rows have no references.
    """
    check_sizes("quantised", at_least=1, rows=rows)
    cli = Prepared(["fit", *config])
    module, data = cli.model, cli.datamodule
    sources = {"student": module.student_source, **module.model_sources, "reference": module.reference_source}
    quantised = {role: pair for role, source in sources.items() if (pair := _pair(source)) is not None}
    if not quantised:
        raise ConfigurationError(
            "The configuration quantises no model: neither `model.student` nor a frozen one has a "
            "`quantization_config`. One that is stored quantised has nothing here to be compared with."
        )
    data.connect(module.tokenizer)
    data.setup("validate")
    batch: PromptBatch = next(iter(data.val_dataloader()))
    batch = batch.rows(torch.arange(min(rows, len(batch))))
    for gap in gaps(quantised, batch, module.tokenizer):
        print(
            f"{gap.role}: KL(full || quantised) {gap.kl:.4g} nats per token over {gap.tokens} tokens; the likeliest id "
            f"is the same for {gap.agreement:.1%}"
        )


def gaps(
    models: dict[str, tuple[ModelSource, ModelSource]], batch: PromptBatch, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Gap]:
    """Yield the gap of each model; one model is in memory at a time.

    Args:
        models: the sources of the quantised model and of the full one, by role.
        batch: prompts with references.
        tokenizer: of the run.
    """
    for role, (packed, full) in models.items():
        before, after = (_logp(source, batch, tokenizer) for source in (full, packed))
        same = (before.argmax(-1) == after.argmax(-1)).float().mean()
        yield Gap(role, len(before), float(forward_kl(after, before).mean()), float(same))


def _pair(source: ModelSource | None) -> tuple[ModelSource, ModelSource] | None:
    """Return the source of a model that is quantised as it is read, and of the same one before; None for others."""
    base = None if source is None else source.frozen_base or source
    full = None if base is None else base.unquantised()
    return None if base is None or full is None else (base, full)


def _logp(source: ModelSource, batch: PromptBatch, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the log-probabilities [N, V] of a model at the first tokens of the references."""
    model = CausalLM(source.load(), real_ids(tokenizer)).requires_grad_(False).eval()
    sequences = FromDataset()(batch, Models(model, None, tokenizer), Step(0, 1))
    with torch.no_grad():
        hidden = read_hidden(model, sequences)[:LARGEST]
        return torch.log_softmax(model.project(hidden)[0], -1)
