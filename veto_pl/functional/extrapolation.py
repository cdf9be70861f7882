r"""How far a student may be pushed beyond its teacher, at one position whose outcomes are {modal token, rest}.

Notation: the teacher gives the modal token p, the model that the student starts from (the base) gives it b, importance
weights are truncated at c, and :math:`\mathrm{logit}(x) = \log x - \log(1 - x)`.
"""

import math


def extrapolated(p: float, b: float, lam: float) -> float:
    r"""Compute the fixed point of extrapolated distillation: the probability of the modal token under :math:`T^\lambda
    B^{1-\lambda}`, normalised.

    .. math:: \mathrm{logit}\, q_\lambda = \mathrm{logit}\, b + \lambda\,(\mathrm{logit}\, p - \mathrm{logit}\, b)

    Args:
        p: the teacher's probability of the modal token, in (0, 1).
        b: the base's, in (0, 1).
        lam: lambda, any finite number; 0 gives b and 1 gives p.

    Returns:
        :math:`q_\lambda` in [0, 1].

    Raises:
        ValueError: an argument lies outside its range.

    Example:
        >>> round(extrapolated(0.9, 0.5, 1.0), 6), round(extrapolated(0.9, 0.5, 2.0), 6)
        (0.9, 0.987805)

    References:
        The optimum :math:`\log \pi^* = \lambda \log T + (1 - \lambda) \log B` is that of arXiv 2602.12125; the form in
        logits is derived from it.
    """
    _check(p, b)
    if not math.isfinite(lam):
        raise ValueError(f"`lam` must be finite, got {lam}.")
    odds = _logit(b) + lam * (_logit(p) - _logit(b))
    small = math.exp(-abs(odds))
    return 1 / (1 + small) if odds >= 0 else small / (1 + small)


def lambda_star(p: float, b: float, c: float) -> float:
    r"""Compute the largest lambda whose fixed point keeps its tail within reach of truncated importance weights.

    .. math:: \lambda^*(p, b, c) =
        \frac{\log \frac{c - 1 + p}{1 - p} - \mathrm{logit}\, b}{\mathrm{logit}\, p - \mathrm{logit}\, b}

    Derivation. The tail (all but the modal token) has the mass :math:`1 - q_\lambda` at the fixed point. The condition
    is that teacher over student stays within c there: :math:`1 - q_\lambda \ge (1 - p) / c`. With equality,
    :math:`q_\lambda = (c - 1 + p) / c`, so :math:`\mathrm{logit}\, q_\lambda = \log \frac{c - 1 + p}{1 - p}`. Setting
    this equal to the logit of `extrapolated` and solving for lambda gives the formula. For a base that is neutral,
    :math:`b = 1/2`, it is :math:`\log \frac{c - 1 + p}{1 - p} / \log \frac{p}{1 - p}`.

    What is derived and what is printed: the paper's abstract names a closed form :math:`\lambda^*(p, b, c)` of these
    three quantities, and the condition on the clipped tail mass :math:`(1 - p) / c` is quoted from it. The formula
    itself was not seen in print; it is the derivation above, which agrees with the neutral form that is quoted once
    numerators and denominators, swapped in the quotation, are put back.

    Args:
        p: the teacher's probability of the modal token, in (0, 1).
        b: the base's, in (0, 1).
        c: truncation of the importance weights, at least 1; infinity means none.

    Returns:
        1 at c = 1; it grows with c. Infinite where the base is at least as sure as the teacher (:math:`b \ge p`):
        extrapolation does not shrink the tail there.

    Raises:
        ValueError: an argument lies outside its range.

    Numerics: exact to rounding while 1 - p is; a p that is rounded to 1 is refused.

    Example:
        >>> round(lambda_star(0.99, 0.5, 5.0), 3), lambda_star(0.99, 0.3, 1.0)
        (1.352, 1.0)

    References:
        arXiv 2605.08737
    """
    _check(p, b)
    if not c >= 1:
        raise ValueError(f"`c` must be at least 1, got {c}.")
    rise = _logit(p) - _logit(b)
    if rise <= 0:
        return math.inf
    return (math.log(c - 1 + p) - math.log1p(-p) - _logit(b)) / rise


def largest_lambda(bound: float, margin: float) -> float:
    r"""Return the largest lambda that keeps its distance from the bound, :math:`\max(1, (1 - \epsilon)\, \lambda^*)`.

    At 1 the student is drawn to the teacher itself, whose tail no clipping can endanger: the bound is never below it.

    Args:
        bound: lambda*, at least 1.
        margin: epsilon in [0, 1).

    Returns:
        The largest lambda.

    Example:
        >>> largest_lambda(1.5, 0.02), largest_lambda(1.01, 0.02)
        (1.47, 1.0)
    """
    return max(1.0, (1 - margin) * bound)


def _logit(x: float) -> float:
    return math.log(x) - math.log1p(-x)


def _check(p: float, b: float) -> None:
    for name, value in (("p", p), ("b", b)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must lie in (0, 1), got {value}.")
