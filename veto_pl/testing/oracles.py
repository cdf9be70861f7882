"""Reference formulas, written apart from `veto_pl.functional`: probability space, decimal arithmetic, plain loops.

A distribution is a list of decimals with 40 digits and an exponent range in which exp(-20000) is an ordinary number, so
nothing underflows and a probability of 0 means an excluded id. Every result is a Python float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext

from torch import Tensor

Distribution = Sequence[Decimal]

_CONTEXT = Context(prec=40)


def distributions(logits: Tensor) -> list[list[Decimal]]:
    """Return the softmax of every row of [N, V] logits; -inf is probability 0."""
    return [_softmax(row) for row in logits.double().tolist()]


def entropy(p: Distribution) -> float:
    r"""Return :math:`-\sum_v p_v \log p_v` in nats."""
    with localcontext(_CONTEXT):
        return float(-sum((a * a.ln() for a in p if a), Decimal()))


def forward_kl(student: Distribution, target: Distribution) -> float:
    r"""Return :math:`\sum_v q_v \log (q_v / p_v)` over the ids with q > 0."""
    with localcontext(_CONTEXT):
        return float(_kl(target, student))


def reverse_kl(student: Distribution, target: Distribution) -> float:
    r"""Return :math:`\sum_v p_v \log (p_v / q_v)` over the ids with p > 0."""
    with localcontext(_CONTEXT):
        return float(_kl(student, target))


def generalized_jsd(student: Distribution, target: Distribution, beta: float) -> float:
    r"""Return :math:`\beta\,\mathrm{KL}(q \Vert m) + (1-\beta)\,\mathrm{KL}(p \Vert m)`.

    Here :math:`m = \beta q + (1-\beta) p`.
    """
    with localcontext(_CONTEXT):
        weight = Decimal(beta)
        middle = _mix(target, student, weight)
        return float(weight * _kl(target, middle) + (1 - weight) * _kl(student, middle))


def skew_kl(student: Distribution, target: Distribution, alpha: float) -> float:
    r"""Return :math:`\mathrm{KL}(q \Vert \alpha q + (1-\alpha) p)`."""
    with localcontext(_CONTEXT):
        return float(_kl(target, _mix(target, student, Decimal(alpha))))


def skew_reverse_kl(student: Distribution, target: Distribution, alpha: float) -> float:
    r"""Return :math:`\mathrm{KL}(p \Vert \alpha p + (1-\alpha) q)`."""
    with localcontext(_CONTEXT):
        return float(_kl(student, _mix(student, target, Decimal(alpha))))


def total_variation(student: Distribution, target: Distribution) -> float:
    r"""Return :math:`\sum_v \max(p_v - q_v, 0)`, the largest difference of the probabilities of an event."""
    with localcontext(_CONTEXT):
        return float(sum((max(a - b, Decimal()) for a, b in zip(student, target, strict=True)), Decimal()))


def alpha_divergence(student: Distribution, target: Distribution, alpha: float) -> float:
    r"""Return :math:`(1 - \sum_v q_v^\alpha p_v^{1-\alpha}) / (\alpha (1 - \alpha))`, and the KLs at the ends."""
    if alpha in (0, 1):
        return forward_kl(student, target) if alpha else reverse_kl(student, target)
    with localcontext(_CONTEXT):
        return float((1 - _affinity(student, target, Decimal(alpha))) / (Decimal(alpha) * (1 - Decimal(alpha))))


def renyi(student: Distribution, target: Distribution, alpha: float) -> float:
    r"""Return :math:`\log \sum_v q_v^\alpha p_v^{1-\alpha} / (\alpha - 1)`, and the forward KL at 1."""
    if alpha == 1:
        return forward_kl(student, target)
    with localcontext(_CONTEXT):
        affinity = _affinity(student, target, Decimal(alpha))
        return float(affinity.ln() / (Decimal(alpha) - 1)) if affinity else math.inf


def geometric_bridge(teacher: Distribution, student: Distribution, beta: float) -> list[float]:
    r"""Return :math:`\log \left( T_v S_v^\beta / \sum_u T_u S_u^\beta \right)`; -inf where either is 0."""
    with localcontext(_CONTEXT):
        power = Decimal(beta)
        products = [t * (s.ln() * power).exp() if t and s else Decimal() for t, s in zip(teacher, student, strict=True)]
        total = sum(products, Decimal())
        return [_log(product / total) for product in products]


def top_k_with_tail(p: Distribution, ids: Sequence[int]) -> list[float]:
    """Return the log-probabilities of `ids`, then of all other ids together."""
    with localcontext(_CONTEXT):
        tail = sum((a for v, a in enumerate(p) if v not in set(ids)), Decimal())
        return [_log(p[v]) for v in ids] + [_log(tail)]


def linear(start: float, end: float, step: int, total: int) -> float:
    """Return the linear interpolation of both ends; `end` after the last step."""
    done = min(step, total)
    return (start * (total - done) + end * done) / total


def cosine(start: float, end: float, step: int, total: int) -> float:
    """Return the mean of both ends, weighted by the square of a cosine over a quarter of its period."""
    share = math.cos(math.pi / 2 * min(step, total) / total) ** 2
    return start * share + end * (1 - share)


def piecewise_constant(values: Sequence[float], boundaries: Sequence[float], step: int, total: int) -> float:
    """Return the value of the last piece that has begun."""
    value = values[0]
    for following, boundary in zip(values[1:], boundaries, strict=True):
        if step / total < boundary:
            break
        value = following
    return value


def warm_up(fraction: float, step: int, total: int) -> float:
    """Return the factor of a linear rise that reaches 1 one step after its last one, and stays there."""
    rise = round(fraction * total)
    return min((step + 1) / (rise + 1), 1.0)


def _softmax(row: Sequence[float]) -> list[Decimal]:
    with localcontext(_CONTEXT):
        largest = Decimal(max(row))
        exponentials = [Decimal() if x == -math.inf else (Decimal(x) - largest).exp() for x in row]
        total = sum(exponentials, Decimal())
        return [e / total for e in exponentials]


def _kl(first: Distribution, second: Distribution) -> Decimal:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a]
    if any(not b for _, b in pairs):
        return Decimal("Infinity")
    return sum((a * (a / b).ln() for a, b in pairs), Decimal())


def _affinity(student: Distribution, target: Distribution, alpha: Decimal) -> Decimal:
    pairs = [(p, q) for p, q in zip(student, target, strict=True) if p and q]
    return sum(((alpha * q.ln() + (1 - alpha) * p.ln()).exp() for p, q in pairs), Decimal())


def _mix(first: Distribution, second: Distribution, weight: Decimal) -> list[Decimal]:
    return [weight * a + (1 - weight) * b for a, b in zip(first, second, strict=True)]


def _log(p: Decimal) -> float:
    return float(p.ln()) if p else -math.inf
