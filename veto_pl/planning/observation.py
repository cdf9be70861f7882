"""Watching a computation on tensors without storage: the bytes that would be alive, and the arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


@dataclass
class Phase:
    """The largest moment of one part of a step, and the part's arithmetic.

    Args:
        gradients: bytes of the trained parameters' gradients at that moment, on this device.
        rest: bytes of everything else that was alive then, except for weights and optimizer state.
        flops: floating-point operations, two for a multiplication with an addition.
        kernels: operations that an accelerator starts a kernel for.
        in_half: operations in half precision, of those that were seen; `flops` counts repetitions too.
        seen: all operations that were seen.
    """

    gradients: int = 0
    rest: int = 0
    flops: float = 0.0
    kernels: float = 0.0
    in_half: float = 0.0
    seen: float = 0.0

    @property
    def peak(self) -> int:
        """Gradients and all other things together."""
        return self.gradients + self.rest

    @property
    def half_share(self) -> float:
        """The share of the arithmetic that is in half precision."""
        return self.in_half / self.seen if self.seen else 0.0


@dataclass(frozen=True)
class _Storage:
    alive: weakref.ref[Any]
    size: int
    gradient: bool = False


class Observation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operation while it is active; enter it inside a `FakeTensorMode`.

    What was allocated before it began does not count, so weights do not. Operations that would have to look at values
    get the answer that costs most: no row has ended, the likeliest ids never hold enough, and a mask is as full as
    `expect` says.

    Args:
        shards: over how many devices a gradient is spread as soon as it is complete.
        gathered_cast: weights that are gathered in the dtype that they are computed with, so that a cast costs nothing.
    """

    def __init__(self, shards: int = 1, gathered_cast: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shards = shards
        self._gathered_cast = {weight.untyped_storage()._cdata for weight in gathered_cast}
        self.phases: dict[str, Phase] = {}
        self._current = Phase()
        self._storages: dict[int, _Storage] = {}
        self._true_counts: dict[tuple[int, ...], int] = {}
        self._gradients = 0
        self._rest = 0

    @property
    def alive(self) -> int:
        """Bytes that are alive now."""
        return self._rest + self._gradients // self.shards

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Count the memory and arithmetic of the block under `name`; phases may be nested and entered again."""
        outer, self._current = self._current, self.phases.setdefault(name, Phase())
        self._update_peak()
        try:
            yield self._current
        finally:
            self._current = outer

    def expect(self, shape: Sequence[int], prompt: int) -> None:
        """Let masks of this shape [B, T], and of [B, T - 1] and [T], count as True after the first `prompt` columns."""
        rows, width = shape
        new = width - prompt
        self._true_counts |= {(rows, width): rows * new, (rows, width - 1): rows * new, (width,): new}

    def mark_gradient(self, parameter: Tensor) -> None:
        """Count the storage of the parameter's present gradient as gradient from now on."""
        if parameter.grad is not None:
            self._track(parameter.grad)
            key = parameter.grad.untyped_storage()._cdata
            known = self._storages[key]
            if not known.gradient:
                self._storages[key] = _Storage(known.alive, known.size, gradient=True)
                self._count(known.size, gradient=True)
                self._count(-known.size, gradient=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation on shapes alone, and count its arithmetic and the storages of its results."""
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._track(leaf, counted=False)
        result = self._assumed_result(func, args)
        if result is None:
            result = func(*args, **kwargs)
        self._count_work(func, args, kwargs, result)
        is_free = func is aten._to_copy.default and args[0].untyped_storage()._cdata in self._gathered_cast
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._track(leaf, counted=not is_free)
        return result

    def _count_work(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        computes = not func.is_view and func._overloadpacket not in _WITHOUT_KERNEL
        self._current.kernels += computes and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if (count := _FLOPS.get(func._overloadpacket)) is not None:
            flops = count(*args, **kwargs, out_val=result)
            self._current.flops += flops
            self._current.seen += flops
            operand = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            self._current.in_half += flops * (operand.dtype in (torch.bfloat16, torch.float16))

    def _track(self, tensor: Tensor, counted: bool = True) -> None:
        """Track a tensor's storage until it is freed; its bytes count unless it was first seen as an argument."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key not in self._storages:
            self._storages[key] = _Storage(weakref.ref(storage, lambda _: self._forget(key)), size)
            self._count(size, gradient=False)
            self._update_peak()

    def _forget(self, key: int) -> None:
        known = self._storages.pop(key)
        self._count(-known.size, known.gradient)

    def _count(self, size: int, gradient: bool) -> None:
        if gradient:
            self._gradients += size
        else:
            self._rest += size

    def _update_peak(self) -> None:
        if self.alive > self._current.peak:
            self._current.gradients, self._current.rest = self._gradients // self.shards, self._rest

    def _assumed_result(self, func: Any, args: Any) -> Any:
        """Return the assumed result of an operation that depends on values, or None for any other operation."""
        if func is aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False
        if func is aten._local_scalar_dense.default and args[0].dtype.is_floating_point:
            return 1.0
        if func is aten.nonzero.default:
            return args[0].new_empty((self._true_count(args[0]), args[0].dim()), dtype=torch.int64)
        if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            values, (mask, *others) = args
            if mask is not None and not others:
                return values.new_empty((self._true_count(mask), *values.shape[mask.dim() :]))
        return None

    def _true_count(self, mask: Tensor) -> int:
        return self._true_counts.get(tuple(mask.shape), mask.numel())


_WITHOUT_KERNEL = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
                   aten.detach, aten._unsafe_view}  # fmt: skip
"""Operations that only make room or change what is known of a tensor, beside views."""


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward(upstream: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = (upstream.shape, query.shape, key.shape, value.shape)
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


_FLOPS: dict[Any, Any] = {
    **flop_registry,
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""How the arithmetic of an operation follows from its shapes."""
