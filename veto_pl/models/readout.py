"""Hidden states and log-probabilities of completions under a model that is not being trained."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from veto_pl.functional.chunk_size import ChunkRows
from veto_pl.functional.chunked import Block, Kernel, RowStream
from veto_pl.models.modes import sampling_mode
from veto_pl.models.sharding import gathered
from veto_pl.seams import LanguageModel, Sequences


def read_hidden(model: LanguageModel, sequences: Sequences) -> Tensor:
    """Return the hidden states [N, D] at the positions that predict a completion token, without dropout and graph."""
    with sampling_mode(model):
        hidden: Tensor = model(sequences, lambda hidden, _: hidden)
    return hidden


def row_scores(
    kernel: Kernel,
    sequences: Sequences,
    student: LanguageModel,
    teacher: LanguageModel | None = None,
    *,
    chunk_rows: ChunkRows = "auto",
) -> dict[str, Tensor]:
    """Return what a kernel finds at each of N completion tokens, [N] each, without a graph.

    Collective where a model is sharded: call it on every rank.

    Args:
        kernel: sees the logits of a block of rows, `block.student` and perhaps `block.teacher`.
        sequences: N completion tokens.
        student: reads them.
        teacher: reads them as well, or None.
        chunk_rows: tokens whose logits are held at a time, or `auto`.
    """
    models = [model for model in (student, teacher) if model is not None]
    hidden = [read_hidden(model, sequences) for model in models]
    with ExitStack() as stack, torch.no_grad():
        for model in models:
            stack.enter_context(gathered(model, head_only=True))
        other = (None, None) if teacher is None else (hidden[1], teacher.head())
        return RowStream(hidden[0], student.head(), *other, chunk_rows=chunk_rows).scores(kernel)


def token_logp(
    model: LanguageModel, sequences: Sequences, *, temperature: float = 1.0, chunk_rows: ChunkRows = "auto"
) -> Tensor:
    """Return the log-probabilities of the completion tokens, [N] float32, without a graph.

    Args:
        model: any model with the vocabulary of the ids.
        sequences: N completion tokens.
        temperature: divides the logits.
        chunk_rows: tokens whose logits are held at a time, or `auto`.
    """
    ids = sequences.token_ids()

    def kernel(block: Block) -> tuple[dict[str, Tensor], None]:
        logp = torch.log_softmax(block.student / temperature, -1)
        return {"logp": logp.gather(1, ids[block.rows, None])[:, 0]}, None

    return row_scores(kernel, sequences, model, chunk_rows=chunk_rows)["logp"]
