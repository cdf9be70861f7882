"""Sequences without their padding: several in one row, each at positions of its own, and none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.types import Sequences


@dataclass(frozen=True)
class Packing:
    """R rows of W tokens that hold B sequences.

    Args:
        input_ids: [R, W] int64.
        position_ids: [R, W] int64, from 0 for each sequence. Spare places have position 0, so each stands alone.
        attention_mask: [R, W] bool, False on spare places.
        index: [N] int64, where the N predictions of the sequences stand in the flattened rows, sequence by sequence.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    index: Tensor

    @classmethod
    def of(cls, sequences: Sequences, width: int | None) -> Packing:
        """Packs sequences.

        Args:
            sequences: in any padding layout.
            width: the rows' W, raised to the longest sequence if that does not fit; None gives each sequence a row.
        """
        mask = sequences.attention_mask
        lengths: list[int] = mask.sum(1).tolist()
        longest = max([1, *lengths])
        rows = [[i] for i in range(len(lengths))] if width is None else fit(lengths, max(width, longest))
        width = max([1, *(sum(lengths[i] for i in row) for row in rows)])
        starts = torch.tensor(_starts(rows, lengths, width), device=mask.device, dtype=torch.int64)
        places = starts[:, None] + sequences.position_ids
        shape = (max(len(rows), 1), width)
        here = places[mask]

        def placed(values: Tensor) -> Tensor:
            return values.new_zeros(shape).flatten().scatter(0, here, values[mask]).view(shape)

        return cls(
            placed(sequences.input_ids),
            placed(sequences.position_ids),
            placed(mask),
            places[:, :-1][sequences.predictions],
        )


def fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Distributes sequences over rows of `width` tokens: first fit, the longest first.

    Args:
        lengths: tokens of each sequence, at most `width`.
        width: tokens that a row holds.

    Returns:
        The sequences of each row.

    Example:
        >>> fit([3, 8, 5, 2], 8)
        [[1], [2, 0], [3]]
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, space in enumerate(free) if space >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(width)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def _starts(rows: list[list[int]], lengths: list[int], width: int) -> list[int]:
    """Where each sequence begins in the flattened rows."""
    starts = [0] * len(lengths)
    for number, row in enumerate(rows):
        place = number * width
        for i in row:
            starts[i] = place
            place += lengths[i]
    return starts
