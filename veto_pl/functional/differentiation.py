"""Values with their gradients in the student's logits: in closed form where there is one, else by autograd."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from veto_pl.functional import alpha, closed_forms, divergences

ValueAndGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def by_autograd(divergence: Callable[[Tensor, Tensor], Tensor]) -> ValueAndGradient:
    """Make a function that returns value and gradient of any differentiable function of log-probabilities.

    Args:
        divergence: maps [..., V] and [..., V] to [...], row by row.

    Returns:
        A function with the signature of those in `veto_pl.functional.closed_forms`.

    Example:
        >>> student, target = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> by_autograd(divergences.forward_kl)(student, target)[1]
        tensor([ 0.2500, -0.2500])
    """

    def value_and_gradient(student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student_logp.detach().requires_grad_()
            value = divergence(leaf, target_logp)
        return value.detach(), gradient_of(value, leaf)

    return value_and_gradient


def gradient_of(value: Tensor, logp: Tensor) -> Tensor:
    r"""Compute the gradient with respect to logits of a value that is a function of their log-softmax.

    .. math:: \frac{\partial L}{\partial z} = g - p \sum_v g_v, \qquad g = \frac{\partial L}{\partial \log p}

    Args:
        value: [...], with a graph down to `logp`, row by row; without one the gradient is 0.
        logp: [..., V] the leaf.

    Returns:
        [..., V].

    Example:
        >>> logp = torch.tensor([0.25, 0.75]).log().requires_grad_()
        >>> gradient_of(-logp[1], logp)
        tensor([ 0.2500, -0.2500])
    """
    if not value.requires_grad:
        return torch.zeros_like(logp)
    (gradient,) = torch.autograd.grad(value, logp, torch.ones_like(value), allow_unused=True, materialize_grads=True)
    return torch.addcmul(gradient, logp.detach().exp(), gradient.sum(-1, keepdim=True), value=-1)


def closed_form(divergence: Callable[..., Any]) -> ValueAndGradient:
    """Find the cheapest way to the value and gradient of `divergence`.

    Args:
        divergence: a function of `veto_pl.functional.divergences` (or a `functools.partial` of one), an object with a
            method `with_gradient`, or any differentiable function, which autograd then takes care of.

    Returns:
        A function of (student_logp, target_logp).

    Example:
        >>> closed_form(divergences.forward_kl) is closed_forms.forward_kl
        True
    """
    if belongs(divergence, "with_gradient", "__call__"):
        found: ValueAndGradient = divergence.with_gradient  # type: ignore[attr-defined]
        return found
    function = divergence.func if isinstance(divergence, partial) else divergence
    closed = next((closed for known, closed in _CLOSED_FORMS if known is function), None)
    if closed is None:
        return by_autograd(divergence)
    return partial(closed, *divergence.args, **divergence.keywords) if isinstance(divergence, partial) else closed


def belongs(instance: object, gradient: str, function: str) -> bool:
    """Return whether a method with a closed form still belongs to the method that it differentiates.

    It does not where a more derived class, a mixin or the instance itself brings another `function`.

    Args:
        instance: the object that has both.
        gradient: name of the method that returns values and gradients.
        function: name of the method that returns values.

    Returns:
        False also where there is no such method.

    Example:
        >>> class Closed:
        ...     def value(self): ...
        ...     def closed(self): ...
        >>> class Other(Closed):
        ...     def value(self): ...
        >>> belongs(Closed(), "closed", "value"), belongs(Other(), "closed", "value")
        (True, False)
    """

    def owner(name: str) -> int | None:
        return next((i for i, cls in enumerate(type(instance).__mro__) if name in vars(cls)), None)

    first, second = owner(gradient), owner(function)
    own = getattr(instance, "__dict__", {})
    return first is not None and second is not None and first <= second and function not in own


_CLOSED_FORMS: tuple[tuple[Callable[..., Any], Callable[..., tuple[Tensor, Tensor]]], ...] = (
    (divergences.forward_kl, closed_forms.forward_kl),
    (divergences.reverse_kl, closed_forms.reverse_kl),
    (divergences.generalized_jsd, closed_forms.generalized_jsd),
    (divergences.skew_kl, closed_forms.skew_kl),
    (divergences.skew_reverse_kl, closed_forms.skew_reverse_kl),
    (divergences.total_variation, closed_forms.total_variation),
    (alpha.alpha_divergence, closed_forms.alpha_divergence),
    (alpha.renyi, closed_forms.renyi),
)
