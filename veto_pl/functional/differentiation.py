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
        return differentiated(lambda logp: divergence(logp, target_logp), student_logp)

    return value_and_gradient


def differentiated(function: Callable[[Tensor], Tensor], logp: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute a value of log-probabilities, and its gradient in the logits that they are the log-softmax of.

    .. math:: \frac{\partial L}{\partial z} = g - p \sum_v g_v, \qquad g = \frac{\partial L}{\partial \log p}

    Args:
        function: maps [..., V] to [...], row by row; what does not depend on its argument has the gradient 0.
        logp: [..., V].

    Returns:
        [...] and [..., V], without graph.

    Example:
        >>> differentiated(lambda logp: -logp[..., 1], torch.tensor([0.25, 0.75]).log())[1]
        tensor([ 0.2500, -0.2500])
    """
    if torch.compiler.is_compiling():  # the compiler follows functions, and no graphs
        value, pull = torch.func.vjp(function, logp)  # type: ignore[misc]
        (gradient,) = pull(torch.ones_like(value))
    else:
        with torch.enable_grad():
            leaf = logp.detach().requires_grad_()
            value = function(leaf)
        gradient = _pulled_back(value, leaf)
    return value.detach(), torch.addcmul(gradient, logp.detach().exp(), gradient.sum(-1, keepdim=True), value=-1)


def _pulled_back(value: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient [..., V] of the sum of `value` [...]; zeros where it has no graph."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    ones = torch.ones_like(value)
    (gradient,) = torch.autograd.grad(value, leaf, ones, allow_unused=True, materialize_grads=True)
    return gradient


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
    if first is None or second is None or first > second:
        return False
    return function not in getattr(instance, "__dict__", {})


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
