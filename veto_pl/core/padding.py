"""Stacks rows of differing length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def pad_right(rows: Sequence[Tensor], value: int = 0) -> tuple[Tensor, Tensor]:
    """Stack 1-D rows of differing length, aligned on the left: [B, max] ids, and the [B, max] bool mask of their
    lengths.
    """
    if not rows:
        return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.bool)
    lengths = torch.tensor([len(row) for row in rows])
    ids = pad_sequence(list(rows), batch_first=True, padding_value=value)
    return ids, torch.arange(ids.shape[1])[None] < lengths[:, None]


def pad_left(rows: Sequence[Tensor], value: int = 0) -> tuple[Tensor, Tensor]:
    """Stack 1-D rows of differing length, aligned on the right: [B, max] ids, and the [B, max] bool mask of their
    lengths.

    Example:
        >>> ids, mask = pad_left([torch.tensor([5]), torch.tensor([6, 7])])
        >>> ids.tolist(), mask.tolist()
        ([[0, 5], [6, 7]], [[False, True], [True, True]])
    """
    ids, mask = pad_right([row.flip(0) for row in rows], value)
    return ids.flip(1), mask.flip(1)
