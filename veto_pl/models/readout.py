"""Hidden states and log-probabilities of completions under a model that is not being trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from veto_pl.functional.blocks import Block, Kernel
from veto_pl.functional.chunk_size import ChunkRows
from veto_pl.functional.heads import Head
from veto_pl.functional.panel_stream import PanelStream, Reader
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
    asked = [] if teacher is None else [(teacher, sequences)]

    def alone(hidden: Sequence[Tensor], heads: Sequence[Head]) -> list[Reader]:
        return [Reader(hidden[0], heads[0]) if hidden else Reader()]

    (scores,) = panel_scores(kernel, [{}], sequences, student, asked, alone, chunk_rows=chunk_rows)
    return scores


def panel_scores(
    kernel: Kernel,
    given: Sequence[Mapping[str, Any]],
    sequences: Sequences,
    student: LanguageModel,
    asked: Sequence[tuple[LanguageModel, Sequences]],
    readers: Callable[[Sequence[Tensor], Sequence[Head]], Sequence[Reader]],
    *,
    chunk_rows: ChunkRows = "auto",
) -> list[dict[str, Tensor]]:
    """Return what a kernel finds for each of several readings, [M] each, without a graph.

    Collective where a model is sharded: call it on every rank.

    Args:
        kernel: sees the logits of a block of rows, `block.student` and perhaps `block.teacher`.
        given: to each reading by name, [M, ...], for the kernel.
        sequences: what the student reads.
        student: reads them.
        asked: of each reading the teacher and what it reads.
        readers: what the loss head reads, of the teachers' hidden states and heads.
        chunk_rows: tokens whose logits are held at a time, or `auto`.
    """
    own = read_hidden(student, sequences)
    hidden = [read_hidden(model, rows) for model, rows in asked]
    with ExitStack() as stack, torch.no_grad():
        for one in dict.fromkeys((student, *(model for model, _ in asked))):
            stack.enter_context(gathered(one, head_only=True))
        heard = readers(hidden, [model.head() for model, _ in asked])
        return PanelStream(own, student.head(), heard, chunk_rows=chunk_rows).scores(kernel, given)


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
