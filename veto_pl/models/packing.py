"""Packs sequences without their padding: several in one row, each at positions of its own, unseen by the others."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.core.transfer import sent
from veto_pl.seams import Sequences


@dataclass(frozen=True)
class Packing:
    """R rows of W tokens that hold B sequences.

    Args:
        input_ids: [R, W] int64.
        position_ids: [R, W] int64, from 0 for each sequence. Spare places have position 0, so each stands alone.
        attention_mask: [R, W] bool, False on spare places.
        index: [N] int64, where the N predictions of the sequences stand in the flattened rows, sequence by sequence.
        padded: whether there are spare places.
        packed: whether a row holds more than one sequence, spare places counted.
        lengths: tokens of each sequence.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    index: Tensor
    padded: bool
    packed: bool
    lengths: Sequence[int]

    @classmethod
    def of(cls, sequences: Sequences, attention_cost: float | None, max_row_tokens: int | None = None) -> Packing:
        """Pack sequences into rows. What goes where is found out on the host, which does not wait for the device.

        Args:
            sequences: in any padding layout.
            attention_cost: as `pack` takes it; None gives each sequence a row of its own.
            max_row_tokens: as `pack` takes it.
        """
        mask, counted = sequences.host_masks
        lengths: list[int] = mask.sum(1).tolist()
        rows = (
            [[i] for i in range(len(lengths))]
            if attention_cost is None
            else pack(lengths, attention_cost, max_row_tokens)
        )
        width = max([1, *(sum(lengths[i] for i in row) for row in rows)])
        shape = (max(len(rows), 1), width)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        places = torch.tensor(_starts(rows, lengths, width), dtype=torch.int64)[:, None] + positions
        to, origin = places[mask], mask.flatten().nonzero()[:, 0]
        spread = positions.new_zeros(shape).flatten().scatter(0, to, positions[mask])
        parts = (spread, to, origin, places[:, :-1][counted[:, 1:]])
        ids = sequences.input_ids.flatten()
        sizes = [len(part) for part in parts]
        position_ids, to, origin, index = torch.split(sent(torch.cat(parts), ids.device), sizes)
        return cls(
            input_ids=ids.new_zeros(len(spread)).scatter(0, to, ids[origin]).view(shape),
            position_ids=position_ids.view(shape),
            attention_mask=torch.zeros_like(position_ids, dtype=torch.bool).index_fill(0, to, True).view(shape),
            index=index,
            padded=len(origin) < len(spread),
            packed=_holds_several(rows, lengths, width),
            lengths=lengths,
        )


def pack(lengths: Sequence[int], attention_cost: float, max_row_tokens: int | None = None) -> list[list[int]]:
    r"""Distribute sequences over rows so that the rows, padding included, cost least.

    A token of a row of W tokens is taken to cost :math:`1 + c W`: attention sees the whole row, masked or not. Wide
    rows waste little on padding and much on attention.

    Args:
        lengths: tokens of each sequence.
        attention_cost: c; 0 where attention skips what is masked, which makes one row of all.
        max_row_tokens: tokens that a row of several sequences may have; any number by default.

    Returns:
        The sequences of each row.

    Example:
        >>> pack([9, 3, 6, 5], 0.01)
        [[0, 1], [2, 3]]
    """

    def cost(rows: list[list[int]]) -> float:
        width = max(sum(lengths[i] for i in row) for row in rows)
        if max_row_tokens is not None and width > max_row_tokens and len(rows) < len(lengths):
            return math.inf
        return len(rows) * width * (1 + attention_cost * width)

    if not lengths:
        return []
    if attention_cost == 0:
        return [list(range(len(lengths)))]
    counts = {-(-len(lengths) // share) for share in range(1, 17)}
    return min((spread_evenly(lengths, count) for count in sorted(counts, reverse=True)), key=cost)


def spread_evenly(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Distribute sequences over `count` rows of similar length: the longest first, each to the shortest row.

    Example:
        >>> spread_evenly([3, 9, 5, 2], 2)
        [[1], [2, 0, 3]]
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, row) for row in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        used, row = heap[0]
        rows[row].append(i)
        heapq.heapreplace(heap, (used + lengths[i], row))
    return rows


def _holds_several(rows: list[list[int]], lengths: list[int], width: int) -> bool:
    """Return whether any row has several sequences; each spare place is one."""
    pieces = [[lengths[i] for i in row if lengths[i]] for row in rows]
    return any(len(row) + width - sum(row) > 1 for row in pieces or [[]])


def _starts(rows: list[list[int]], lengths: list[int], width: int) -> list[int]:
    """Return where each sequence begins in the flattened rows."""
    starts = [0] * len(lengths)
    for number, row in enumerate(rows):
        place = number * width
        for i in row:
            starts[i] = place
            place += lengths[i]
    return starts
