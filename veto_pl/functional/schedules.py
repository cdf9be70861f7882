"""Numbers that change with the fraction of the run that is done; fractions outside [0, 1] count as the nearer end."""

import math
from collections.abc import Sequence


def linear(start: float, end: float, fraction: float) -> float:
    """Return the value at `fraction` of a straight line from `start` to `end`.

    Example:
        >>> linear(0.8, 0.0, 0.25)
        0.6000000000000001
    """
    return start + (end - start) * _clip(fraction)


def cosine(start: float, end: float, fraction: float) -> float:
    r"""Return the value of half a cosine wave, :math:`e + (s - e)(1 + \cos \pi f)/2`, which is slow at both ends.

    Example:
        >>> cosine(1.0, 0.0, 0.5)
        0.5
    """
    return end + (start - end) * (1 + math.cos(math.pi * _clip(fraction))) / 2


def piecewise_constant(values: Sequence[float], boundaries: Sequence[float], fraction: float) -> float:
    """Return `values[i]` once `i` of the ascending `boundaries` have been reached.

    Example:
        >>> piecewise_constant([0.8, 0.4, 0.0], [0.5, 0.75], 0.5)
        0.4
    """
    return values[sum(_clip(fraction) >= boundary for boundary in boundaries)]


def _clip(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0)
