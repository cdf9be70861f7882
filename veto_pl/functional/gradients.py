"""Gradients that are summed chunk by chunk in the forward pass, and handed out by the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from veto_pl.functional.heads import Head


@dataclass(frozen=True)
class Gradients:
    """Sums of a loss's gradients.

    Args:
        hidden: [N, D], or None where the hidden states have no gradient.
        parameters: one for each parameter of the head, None where it is frozen.

    Example:
        >>> from veto_pl.functional.heads import LinearHead
        >>> hidden, head = torch.ones(1, 2, requires_grad=True), LinearHead(torch.eye(2))
        >>> gradients = Gradients.empty(hidden, head)
        >>> gradients.add(head, gradient=torch.tensor([[0.5, -0.5]]), hidden=hidden.detach(), start=0)
        >>> gradients.attach(torch.tensor(3.0), hidden, head).backward()
        >>> hidden.grad
        tensor([[ 0.5000, -0.5000]])
    """

    hidden: Tensor | None
    parameters: tuple[Tensor | None, ...]

    @classmethod
    def empty(cls, hidden: Tensor, head: Head) -> Gradients:
        """Allocate sums for the tensors that require a gradient.

        The first chunk overwrites them, so they are not initialised; they are zeros where there is no row and so no
        chunk.
        """

        def room(tensor: Tensor, dtype: torch.dtype) -> Tensor | None:
            if not tensor.requires_grad:
                return None
            return torch.empty_like(tensor, dtype=dtype) if len(hidden) else torch.zeros_like(tensor, dtype=dtype)

        sums = (room(p, torch.promote_types(p.dtype, torch.float32)) for p in head.parameters)
        return cls(room(hidden, hidden.dtype), tuple(sums))

    def add(self, head: Head, gradient: Tensor, hidden: Tensor, start: int) -> None:
        """Add a chunk: `gradient` [n, V] of its logits, `hidden` [n, D] its rows, which begin at `start`."""
        wanted = self.hidden is not None
        of_hidden = head.backward(gradient, hidden, self.parameters, first=start == 0, for_hidden=wanted)
        if self.hidden is not None and of_hidden is not None:
            self.hidden[start : start + len(hidden)] = of_hidden

    def attach(self, total: Tensor, hidden: Tensor, head: Head) -> Tensor:
        """Return the scalar `total` with a graph whose backward pass gives these gradients, times the upstream one."""
        inputs = (hidden, *head.parameters)
        known = [
            None if gradient is None else gradient.to(tensor.dtype)
            for tensor, gradient in zip(inputs, (self.hidden, *self.parameters), strict=True)
        ]
        attached: Tensor = _PrecomputedGradients.apply(total.detach(), known, *inputs)  # type: ignore[no-untyped-call]
        return attached


class _PrecomputedGradients(torch.autograd.Function):
    """A scalar whose gradients were computed together with it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradients of the loss head were already used. Compute the loss again.")
        gradients, ctx.gradients = ctx.gradients, None
        if upstream.device.type == "cpu" and upstream == 1:  # an accelerator would have to wait for the answer
            return (None, None, *gradients)
        return (None, None, *(None if g is None else g.mul_(upstream) for g in gradients))
