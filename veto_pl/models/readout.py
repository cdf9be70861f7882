"""Hidden states and log-probabilities of completions under a model that is not being trained."""

from __future__ import annotations

import torch
from torch import Tensor

from veto_pl.functional.chunk_size import ChunkRows
from veto_pl.functional.chunked import Block, RowStream
from veto_pl.models.modes import sampling_mode
from veto_pl.models.sharding import gathered
from veto_pl.seams import LanguageModel, Sequences


def read_hidden(model: LanguageModel, sequences: Sequences) -> Tensor:
    """Return the hidden states [N, D] at the positions that predict a completion token, without dropout and graph."""
    with sampling_mode(model):
        hidden: Tensor = model(sequences, lambda hidden, _: hidden)
    return hidden


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

    with gathered(model, head_only=True), torch.no_grad():
        return RowStream(read_hidden(model, sequences), model.head(), chunk_rows=chunk_rows).scores(kernel)["logp"]
