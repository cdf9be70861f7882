"""Runs a function of vocabulary-sized rows a few rows at a time, so that no [N, V] tensor outlives its chunk."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def map_rows(
    function: Callable[..., dict[str, Tensor]], rows: Sequence[Tensor | None], chunk_rows: int
) -> dict[str, Tensor]:
    """Applies `function` to chunks of rows and concatenates what it returns.

    Args:
        function: maps tensors [n, ...] to a dictionary of tensors [n]; a None among `rows` is passed as it is.
        rows: tensors [N, ...] with the same N.
        chunk_rows: the largest n; at least 1.

    Returns:
        A dictionary of [N] tensors. With N = 0 the function runs once on empty rows, so that the graph stays connected.

    Raises:
        ValueError: `chunk_rows` is below 1.

    Numerics: values and gradients do not depend on `chunk_rows` beyond the order of summation. More than one chunk is
    recomputed in the backward pass (activation checkpointing), one chunk is not.

    Example:
        >>> out = map_rows(lambda x: {"sum": x.sum(-1)}, [torch.ones(5, 3)], chunk_rows=2)
        >>> out["sum"]
        tensor([3., 3., 3., 3., 3.])
    """
    if chunk_rows < 1:
        raise ValueError(f"`chunk_rows` must be at least 1, got {chunk_rows}.")
    size = next(row.shape[0] for row in rows if row is not None)
    if size <= chunk_rows:
        return function(*rows)
    parts = []
    for start in range(0, size, chunk_rows):
        chunk = [None if row is None else row[start : start + chunk_rows] for row in rows]
        parts.append(checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
