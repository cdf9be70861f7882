"""A distance between two distributions, from samples of both."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(samples: Tensor, others: Tensor) -> Tensor:
    r"""Return the squared energy distance of two sets of points, which is 0 for equal distributions.

    .. math:: 2\,\mathbb{E}\lVert x - y\rVert - \mathbb{E}\lVert x - x'\rVert - \mathbb{E}\lVert y - y'\rVert

    Pairs of a point with itself count, so it is never negative, and 0 for the same set (Székely and Rizzo, "Energy
    statistics", J. Stat. Plan. Inference 143, 2013).

    Args:
        samples: [N, ...] points; all further axes are one.
        others: [M, ...] points.

    Example:
        >>> energy_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]]))
        tensor(1.)
    """
    x, y = samples.flatten(1), others.flatten(1)
    exact = "donot_use_mm_for_euclid_dist"  # products of matrices round a distance of 0 away from it
    between, within, beyond = (torch.cdist(a, b, compute_mode=exact).mean() for a, b in ((x, y), (x, x), (y, y)))
    return 2 * between - within - beyond
