"""How far the arithmetic of an engine is from that of the trainer."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from veto_pl.core.sampling import Sampling
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.chunked import Block
from veto_pl.models.readout import row_scores
from veto_pl.seams import Engine, LanguageModel, Sequences

CHUNK_ROWS = 256
"""Tokens whose vocabulary-sized rows are held at a time."""
FIRST_ROWS = 4
"""Rows of a teacher that its engine is checked with."""


def compared(written: Sequences, model: LanguageModel, sampling: Sampling, engine: Engine, largest: float) -> Sequences:
    """Compare an engine's arithmetic with the trainer's: on all rows of a student, on the first few of another writer.

    Collective where the model is sharded: call it on every rank.

    Args:
        written: what the engine has sampled.
        model: the writer, as training has it.
        sampling: how it was sampled; greedy rows are not compared.
        engine: which one.
        largest: mean difference in nats that is allowed.

    Returns:
        The rows of a student with `engine_log_ratio`, others as they are.

    Raises:
        ConfigurationError: the engine samples from another model.
    """
    if sampling.temperature == 0:
        return written
    if any(weight.requires_grad for weight in model.parameters()):
        ratio = engine_log_ratio(written, model, sampling)
        check_gap(written, ratio, largest, type(engine).__name__)
        return replace(written, engine_log_ratio=ratio)
    if engine not in _checked.setdefault(model, set()):
        first = written.rows(torch.arange(min(len(written), FIRST_ROWS), device=written.input_ids.device))
        check_gap(first, engine_log_ratio(first, model, sampling), largest, type(engine).__name__)
        _checked[model].add(engine)
    return written


def engine_log_ratio(sequences: Sequences, model: LanguageModel, sampling: Sampling) -> Tensor:
    r"""Read sampled rows with the trainer's arithmetic, :math:`\log p(y_t) - \log \mu(y_t)`.

    Collective where the model is sharded: call it on every rank.

    Args:
        sequences: B rows that an engine has sampled from the model, with its log-probabilities :math:`\mu`.
        model: the model as training has it.
        sampling: shapes the model's distribution to p, as the engine has shaped its own.

    Returns:
        [B, T] float32, 0 off the completions; -inf where training's distribution would not have drawn the token, which
        may happen at the edge of a truncated one.
    """
    assert sequences.sampler_logp is not None, "an engine says what it has drawn with"
    ids = sequences.token_ids()

    def look(block: Block) -> tuple[dict[str, Tensor], None]:
        return {"logp": sampling.shape(model.text_only(block.student)).gather(1, ids[block.rows, None])[:, 0]}, None

    own = row_scores(look, sequences, model, chunk_rows=CHUNK_ROWS)["logp"]
    ratio = torch.zeros_like(sequences.sampler_logp)
    ratio[:, 1:][sequences.predictions] = own - sequences.sampler_logp[:, 1:][sequences.predictions]
    return ratio


def check_gap(sequences: Sequences, ratio: Tensor, largest: float, engine: str) -> None:
    """Raise `ConfigurationError` where an engine's probabilities are not those of the model."""
    written = sequences.completion_mask
    sizes = ratio[written].abs()
    possible = sizes.isfinite()
    gap = float(sizes[possible].mean()) if bool(possible.any()) else float("inf")
    if len(sizes) and gap > largest:
        raise ConfigurationError(
            f"The engine `{engine}` gives the tokens that it samples other probabilities than training does: log-"
            f"probabilities differ by {gap:.3g} nats per token on average, and `{engine}.largest_gap` is {largest:g}. "
            "The engine has not got the weights, or computes this architecture in another way. Use the engine "
            "`DecodeLoop`, or raise `largest_gap` if you know why they differ."
        )


_checked: WeakKeyDictionary[LanguageModel, set[Engine]] = WeakKeyDictionary()
