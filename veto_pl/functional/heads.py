"""Output heads as the loss sees them: hidden states to logits, and gradients of logits back, a few rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class ScaleAndCap:
    r"""The transformation of a head's raw output x by some architectures: :math:`y = c \tanh(s x / c)`.

    Args:
        scale: s; Cohere and Granite have one.
        softcap: c, or None for :math:`y = s x`; Gemma has one.

    Example:
        >>> ScaleAndCap(scale=0.5, softcap=1.0)(torch.tensor([0.0, 100.0]))
        tensor([0., 1.])
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Return the logits [..., V], in float32 at least."""
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def backward(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn the [..., V] gradient in the logits y into the gradient in the raw output x."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square())
        return gradient if self.scale == 1 else gradient * self.scale


class Head(ABC):
    """Maps hidden states to logits, and gradients of the logits to gradients of hidden states and parameters."""

    scale_and_cap: ScaleAndCap
    vocab_size: int

    @property
    @abstractmethod
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that `backward` can have gradients for."""

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> Head:
        """Return the same head for hidden states of `dtype`."""

    @abstractmethod
    def forward(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Map hidden states [n, D] to the head's raw output [n, R], written into `out` where that is possible."""

    def logits_dtype(self, hidden: Tensor) -> torch.dtype:
        """Return the dtype that `forward` gives for these hidden states, as far as it is known before."""
        return hidden.dtype

    def gradient_dtype(self, logits: torch.dtype) -> torch.dtype:
        """Return the dtype that `backward` wants of the gradient of logits of a dtype."""
        return logits

    @abstractmethod
    def backward(
        self, gradient: Tensor, hidden: Tensor, sums: Sequence[Tensor | None], *, first: bool, for_hidden: bool = True
    ) -> Tensor | None:
        """Map the [n, V] gradient of the raw output to the [n, D] gradient of the hidden states.

        The parameters' gradients are added to `sums`.

        What `sums` held before the `first` chunk is nothing, and is overwritten: that saves a pass over the weights.
        Without `for_hidden`, hidden states have no gradient, and None is returned.
        """


@dataclass(frozen=True)
class LinearHead(Head):
    """A matrix, and a bias if there is one: two matrix products backward, summed in place.

    Args:
        weight: [R, D].
        bias: [R] or None.
        scale_and_cap: what follows the product.
        vocab_size: the first rows, those with a token; all R by default. The others never get probability.

    Numerics: hidden states and weight meet in the autocast dtype where autocast is on, else in their own; sums over
    chunks are kept in float32 at least. Where the device can (CUDA), products of bfloat16 are float32: the logits, and
    what is added to the sums, are then rounded nowhere.

    Example:
        >>> head = LinearHead(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), scale_and_cap=ScaleAndCap(0.5))
        >>> head.scale_and_cap(head.forward(torch.tensor([[2.0, 4.0]])))
        tensor([[1., 2., 3.]])
    """

    weight: Tensor
    bias: Tensor | None = None
    scale_and_cap: ScaleAndCap = ScaleAndCap()
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.vocab_size <= len(self.weight):
            raise ValueError(f"`vocab_size` must lie in [0, {len(self.weight)}], got {self.vocab_size}.")
        object.__setattr__(self, "vocab_size", self.vocab_size or len(self.weight))

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Weight and bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def cast(self, dtype: torch.dtype) -> LinearHead:
        """Return the same numbers as `dtype`, without a graph."""
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return replace(self, weight=self.weight.detach().to(dtype), bias=bias)

    def forward(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Map [n, D] to [n, R]."""
        with full_precision(hidden.device):  # `cast` has chosen the dtype already
            if widens(hidden.device, hidden.dtype):
                logits = torch.mm(hidden, self.weight.T, out_dtype=torch.float32, out=out)
                return logits if self.bias is None else logits.add_(self.bias)
            if self.bias is None:
                return torch.mm(hidden, self.weight.T, out=out)
            return torch.addmm(self.bias, hidden, self.weight.T, out=out)

    def logits_dtype(self, hidden: Tensor) -> torch.dtype:
        """Return float32 where the device forms it from shorter numbers, else the hidden states' dtype."""
        return torch.float32 if widens(hidden.device, hidden.dtype) else hidden.dtype

    def gradient_dtype(self, logits: torch.dtype) -> torch.dtype:
        """Return the weight's dtype, which the gradient is multiplied by."""
        return self.weight.dtype

    def backward(
        self, gradient: Tensor, hidden: Tensor, sums: Sequence[Tensor | None], *, first: bool, for_hidden: bool = True
    ) -> Tensor | None:
        """Map [n, V] to [n, D]."""
        with full_precision(hidden.device):
            self._add(gradient, hidden, sums, first)
            return gradient @ self.weight[: self.vocab_size] if for_hidden else None

    def _add(self, gradient: Tensor, hidden: Tensor, sums: Sequence[Tensor | None], first: bool) -> None:
        if (weight := sums[0]) is not None:
            kept, padding = weight[: self.vocab_size], weight[self.vocab_size :]
            if first:
                padding.zero_()
            if kept.dtype == gradient.dtype:
                kept.addmm_(gradient.T, hidden, beta=0 if first else 1)
            elif widens(gradient.device, gradient.dtype):
                beta = 0 if first else 1
                torch.addmm(kept, gradient.T, hidden, out_dtype=kept.dtype, beta=beta, out=kept)
            else:
                product = gradient.T @ hidden
                kept.copy_(product) if first else kept.add_(product)
        if len(sums) > 1 and (bias := sums[1]) is not None:
            if first:
                bias.zero_()
            bias[: self.vocab_size] += gradient.sum(0, dtype=bias.dtype)


class FunctionHead(Head):
    """Any differentiable head: a LoRA adapter, a module with hooks. Autograd runs on one chunk at a time.

    Args:
        function: maps [n, D] to [n, R].
        parameters: the tensors inside it that are trained.
        vocab_size: the first columns, those with a token.
        scale_and_cap: what follows.

    Example:
        >>> layer = torch.nn.Linear(2, 3)
        >>> head = FunctionHead(layer, list(layer.parameters()), vocab_size=3)
        >>> sums = [torch.empty_like(p) for p in head.parameters]
        >>> hidden = torch.ones(1, 2)
        >>> logits = head.forward(hidden)
        >>> _ = head.backward(torch.ones(1, 3), hidden, sums, first=True)
        >>> sums[1]
        tensor([1., 1., 1.])
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        parameters: Sequence[Tensor],
        vocab_size: int,
        scale_and_cap: ScaleAndCap = ScaleAndCap(),
    ) -> None:
        self.function = function
        self._parameters = tuple(parameters)
        self.vocab_size = vocab_size
        self.scale_and_cap = scale_and_cap
        self._graph: tuple[Tensor, Tensor] | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors inside the function that are trained."""
        return self._parameters

    def cast(self, dtype: torch.dtype) -> FunctionHead:
        """Return the head itself: the function decides about its dtype."""
        return self

    def forward(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Map [n, D] to [n, R]; where gradients are enabled, keep the graph of this chunk for `backward`."""
        if not torch.is_grad_enabled():
            return self.function(hidden)
        leaf = hidden.detach().requires_grad_()
        logits = self.function(leaf)
        self._graph = (leaf, logits)
        return logits.detach().clone()

    def backward(
        self, gradient: Tensor, hidden: Tensor, sums: Sequence[Tensor | None], *, first: bool, for_hidden: bool = True
    ) -> Tensor | None:
        """Map [n, V] to [n, D], and use up the graph that `forward` kept."""
        assert self._graph is not None, "`forward` runs on the same rows before `backward`"
        (leaf, logits), self._graph = self._graph, None
        wanted = [(p, total) for p, total in zip(self.parameters, sums, strict=True) if total is not None]
        if first:
            for _, total in wanted:
                total.zero_()
        whole = pad(gradient, (0, logits.shape[1] - gradient.shape[1])).to(logits.dtype)
        of_hidden, *others = torch.autograd.grad(logits, [leaf, *(p for p, _ in wanted)], whole, allow_unused=True)
        for (_, total), part in zip(wanted, others, strict=True):
            if part is not None:
                total.add_(part)
        return of_hidden


@cache
def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device forms float32 products of matrices of a shorter dtype: CUDA does. It is tried once.

    Example:
        >>> widens(torch.device("cpu"), torch.bfloat16)
        False
    """
    if device.type == "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    some, total = torch.ones(8, 8, dtype=dtype, device=device), torch.zeros(8, 8, dtype=torch.float32, device=device)
    try:
        torch.addmm(total, some, torch.mm(some, some, out_dtype=torch.float32).to(dtype), out_dtype=torch.float32)
    except RuntimeError:
        return False
    return True


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context without autocast, which would round dot products and products into other buffers.

    Example:
        >>> with torch.autocast("cpu"), full_precision(torch.device("cpu")):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    return torch.autocast(device.type, enabled=False)
