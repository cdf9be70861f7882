"""What the laws are tried on: pairs of logits with everything that has ever broken a loss, and ragged masks.

Shapes and kinds are drawn by hypothesis and shrink; the numbers come from a seed that is drawn too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("ordinary", "peaked", "extreme", "ties", "excluded", "excluded extreme")
"""Spread of 1, of 20, of 10 000; few distinct values; ids that both models exclude."""
SMOOTH = ("ordinary", "peaked")
"""The kinds without ties, exclusions or limits of the number format."""


def logits_of_kind(kind: str, rows: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two [N, V] float64 tensors of values exact in float32; each row has at least one finite logit."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, rows, vocabulary)
    if kind == "ties":
        logits = torch.randint(-1, 2, shape, generator=generator).float()
    else:
        spread = {"peaked": 20.0, "extreme": 1e4, "excluded extreme": 1e4}.get(kind, 1.0)
        logits = torch.randn(shape, generator=generator) * spread
    logits = logits.clamp(-1e4, 1e4)
    if "excluded" in kind:
        gone = torch.rand(rows, vocabulary, generator=generator) < 0.5
        stays = torch.randint(vocabulary, (rows, 1), generator=generator)
        logits = logits.masked_fill(gone.scatter(1, stays, False), -math.inf)
    student, teacher = logits.double()
    return student, teacher


def logits_pairs(
    kinds: Sequence[str] = KINDS, *, max_rows: int = 4, max_vocabulary: int = 40
) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Return a strategy for logits of student and teacher, [N, V] each, N and V small and V at least 2."""
    return st.builds(
        logits_of_kind,
        st.sampled_from(list(kinds)),
        st.integers(1, max_rows),
        st.integers(2, max_vocabulary),
        st.integers(0, 2**31 - 1),
    )


def masked_values(rows: int, width: int, seed: int, *, empty: bool) -> tuple[Tensor, Tensor]:
    """Return [B, S] float64 values and a [B, S] bool mask, in each row True on one run of any length, also 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    starts, ends = torch.randint(width + 1, (2, rows, 1), generator=generator).sort(0).values
    columns = torch.arange(width)
    mask = (columns >= starts) & (columns < ends) if not empty else torch.zeros(rows, width, dtype=torch.bool)
    return values, mask


def ragged_grids(*, max_rows: int = 5, max_width: int = 7) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Return a strategy for [B, S] values with a ragged mask; some rows, and at times all, are empty."""
    empty = st.integers(0, 7).map(lambda draw: draw == 7)
    shape = st.integers(1, max_rows), st.integers(1, max_width), st.integers(0, 2**31 - 1)
    return st.builds(masked_values, *shape, empty=empty)
