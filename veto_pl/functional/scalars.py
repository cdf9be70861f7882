"""Numbers of formulas: floats, or 0-dim tensors of floats, which compiled code takes as inputs and not as constants."""

from torch import Tensor

Scalar = float | Tensor
"""A tensor's value is not looked at: it is not checked, and no shortcut is taken for it."""


def is_one_of(number: Scalar, *values: float) -> bool:
    """Return whether a float is one of `values`; a tensor never is, whatever its value.

    Example:
        >>> import torch
        >>> is_one_of(1.0, 0, 1), is_one_of(torch.tensor(1.0), 0, 1)
        (True, False)
    """
    return not isinstance(number, Tensor) and number in values


def check_weight(name: str, weight: Scalar) -> None:
    """Raise `ValueError` where a float lies outside of [0, 1].

    Example:
        >>> check_weight("`beta`", 1.5)
        Traceback (most recent call last):
        ...
        ValueError: `beta` must lie in [0, 1], got 1.5.
    """
    if not isinstance(weight, Tensor) and not 0 <= weight <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {weight}.")
