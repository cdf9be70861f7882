"""What a compiled kernel takes for inputs: without this, each value of a number would be compiled anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from veto_pl.functional import alpha, divergences, targets

Number = Callable[[float], Tensor]
"""Makes a 0-dim tensor of a number, where the logits are and as exact as they are."""

WITH_A_WEIGHT = (
    divergences.generalized_jsd,
    divergences.skew_kl,
    divergences.skew_reverse_kl,
    alpha.alpha_divergence,
    alpha.renyi,
    targets.geometric_bridge,
)
"""The functions whose numbers may be tensors."""


def with_tensors(function: Any, number: Number, step: Any = None) -> Any:
    """Return a function or a part that computes the same, from tensors in the place of numbers.

    Args:
        function: one of `WITH_A_WEIGHT` with numbers of its own, as a `functools.partial`; a part, which has a method
            `with_tensors`; or anything else, which stays as it is.
        number: makes the tensors.
        step: where training stands, for parts with schedules.

    Example:
        >>> import torch
        >>> jsd = partial(divergences.generalized_jsd, beta=0.3)
        >>> with_tensors(jsd, torch.tensor).keywords
        {'beta': tensor(0.3000)}
    """
    if isinstance(function, partial) and function.func in WITH_A_WEIGHT:
        given = {name: as_tensor(value, number) for name, value in function.keywords.items()}
        return partial(function.func, *function.args, **given)
    return function.with_tensors(number, step) if hasattr(function, "with_tensors") else function


def as_tensor(value: Any, number: Number) -> Any:
    """Return a float as a tensor, but for 0 and 1: there a formula becomes another, which costs less.

    Example:
        >>> import torch
        >>> as_tensor(0.5, torch.tensor), as_tensor(1.0, torch.tensor)
        (tensor(0.5000), 1.0)
    """
    return number(value) if isinstance(value, float) and value not in (0, 1) else value
