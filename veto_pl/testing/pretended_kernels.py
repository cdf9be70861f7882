"""What torch does on the pretended GPU before an operation reaches a tensor: factories, autocast, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map

from veto_pl.testing.device_rules import is_locked, lock
from veto_pl.testing.device_work import record_kernel
from veto_pl.testing.pretended_device import NAME, on_device
from veto_pl.testing.pretended_tensor import PretendedTensor, made_on_device

_FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace",
    "randperm", "tril_indices", "triu_indices",
)  # fmt: skip
LOWER = ("mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "matmul", "linear", "scaled_dot_product_attention")
"""What CUDA's autocast runs in the lower precision."""
FULL = (
    "exp", "log", "log10", "log2", "log1p", "expm1", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "rsqrt", "reciprocal",
    "softmax.int", "log_softmax.int", "sum", "sum.dim_IntList", "cumsum", "prod", "norm.Scalar", "layer_norm",
    "logsumexp", "cosine_similarity", "nll_loss", "kl_div", "mse_loss",
)  # fmt: skip
"""What it runs in float32."""
_kept: list[torch.library.Library] = []
"""Kernels go when their library goes."""


def register_kernels() -> None:
    """Make the kernels known to torch, once in a process."""
    new_library: Any = torch.library.Library
    aten, others = new_library("aten", "IMPL"), new_library("_", "IMPL")
    _kept.extend((aten, others))
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in _FACTORIES:
        aten.impl(name, made_on_device(_overload(name)), "PrivateUse1")
    for name in (*LOWER, *FULL):
        aten.impl(name, _autocast(name, lower=name in LOWER), "AutocastPrivateUse1")
    aten.impl("scaled_dot_product_attention", _attend, "AutogradPrivateUse1")
    aten.impl("_pin_memory", _pin, "CPU")
    aten.impl("is_pinned", _is_pinned, "CPU")


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _pin(tensor: Tensor, device: Any = None) -> Tensor:
    copied = tensor.clone()
    lock(copied)
    return copied


def _is_pinned(tensor: Tensor, device: Any = None) -> bool:
    return is_locked(tensor)


def _autocast(name: str, *, lower: bool) -> Callable[..., Any]:
    """Return a kernel that casts its arguments as CUDA's autocast does, and then calls the operation itself."""
    func = _overload(name)

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not on_device(value) or not value.is_floating_point():
            return value
        wanted = torch.get_autocast_dtype(NAME) if lower else torch.float32
        return value if value.dtype in (wanted, torch.float64) else value.to(wanted)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(NAME, enabled=False):
            return func(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **others: Any,
) -> Tensor:  # fmt: skip
    settings = {"dropout_p": dropout_p, "is_causal": is_causal, **others}
    result: Tensor = _Attention.apply(query, key, value, attn_mask, settings)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    """Attention as one kernel in each direction, which is what it is on a GPU; its graph is one of the host."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, settings: dict[str, Any]
    ) -> Tensor:
        read = (query, key, value)
        leaves = [_host(tensor).detach().requires_grad_(tensor.requires_grad) for tensor in read]
        with torch.enable_grad():
            q, k, v = leaves
            out = scaled_dot_product_attention(q, k, v, None if mask is None else _host(mask), **settings)
        ctx.leaves, ctx.out = leaves, out
        record_kernel("scaled_dot_product_attention", [*read, *([] if mask is None else [mask]), out])
        return PretendedTensor(out.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        found = torch.autograd.grad(ctx.out, wanted, _host(gradient), retain_graph=True)
        record_kernel("scaled_dot_product_attention_backward", [gradient, ctx.out, *ctx.leaves, *found])
        by_leaf = iter(found)
        gradients = [PretendedTensor(next(by_leaf)) if leaf.requires_grad else None for leaf in ctx.leaves]
        return *gradients, None, None


def _host(tensor: Tensor) -> Tensor:
    """Return the values of a pretended tensor."""
    if not isinstance(tensor, PretendedTensor):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices: "
            f"scaled_dot_product_attention of {tuple(tensor.shape)} on {tensor.device}."
        )
    return tensor.held
