"""Tensors whose values are on the host and that say that they are on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from veto_pl.testing.device_rules import refuse, waits
from veto_pl.testing.device_work import record_kernel, record_wait
from veto_pl.testing.pretended_device import NAME, on_device

_aten = torch.ops.aten
_FREE = ("_unsafe_view", "detach", "lift_fresh", "_local_scalar_dense", "new_empty", "new_empty_strided", "empty_like")
"""They start no kernel, and neither do views."""
_OVERWRITING = ("copy_", "zero_", "fill_", "uniform_", "normal_", "random_")
"""They write their first argument without reading it."""
_RESHAPING = ("resize_", "set_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_", "swapdims_")
"""They change the shape of the tensor itself, which a wrapper cannot follow."""


class PretendedTensor(Tensor):
    """A tensor of the host that says it is on the pretended GPU.

    Every operation on one is checked and counted as `veto_pl.testing.device_rules` says, and is then run on the host.
    As a CUDA tensor does, it has no numpy array, and is saved as one of the host.

    Args:
        held: the values, on the host and without a graph.
    """

    held: Tensor

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> PretendedTensor:
        like: dict[str, Any] = {"dtype": held.dtype, "layout": held.layout, "device": torch.device(NAME, 0)}
        made: PretendedTensor = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), **like
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        super().__init__()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Name what is inside, by which torch knows a wrapper."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> PretendedTensor:
        """Wrap what was inside again."""
        return PretendedTensor(inner["held"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = PretendedTensor(self.held.clone())
        if isinstance(self, Parameter):
            copied = Parameter(copied, self.requires_grad)
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.held!r})"

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if self.dim() == 0 else object.__format__(self, specification)

    def numpy(self, **_: Any) -> Any:
        """Refuse, as a CUDA tensor does; `__array__` asks here too."""
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        """Return the values, for which the host waits."""
        return self.cpu().tolist()


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation of which an argument, or the result, is on the pretended GPU.

    Raises:
        RuntimeError: CUDA would raise; see `device_rules.refuse`.
        NotImplementedError: CUDA would raise, or the operation changes the shape of its argument.
    """
    if _is_composite(func):
        return func.decompose(*args, **kwargs)
    name = func._opname
    if name in _RESHAPING:
        raise NotImplementedError(f"The pretended GPU does not know `{name}`.")
    refuse(func, args, kwargs)
    for reason in waits(func, args, kwargs):
        record_wait(reason)
    result = func(*tree_map(_held, args), **_on_host(kwargs))
    if not func.is_view and name not in _FREE:
        touched = args[1:] if name in _OVERWRITING else args, kwargs, result
        record_kernel(name, [leaf for leaf in tree_leaves(touched) if isinstance(leaf, Tensor)])
    if name in ("_local_scalar_dense", "equal") or not on_device(kwargs.get("device") or torch.device(NAME)):
        return result
    # Under inference mode a view of an ordinary tensor is one too.
    inference = torch.is_inference_mode_enabled() and not (func.is_view and not args[0].is_inference())
    with torch.inference_mode(inference):
        wrapped = tree_map(_pretended, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)  # type: ignore[no-untyped-call]


def made_on_device(func: Any) -> Callable[..., Tensor]:
    """Return a kernel that makes tensors of the pretended GPU as `func` makes them on the host."""

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        refuse(func, args, kwargs)
        made = PretendedTensor(func(*args, **_on_host(kwargs)))
        if not func._opname.startswith("empty"):
            record_kernel(func._opname, [made])
        return made

    return kernel


def _is_composite(func: Any) -> bool:
    """Return whether an operation is made of others; in inference mode torch has not taken it apart before."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if not torch.is_inference_mode_enabled() or func is _aten.scaled_dot_product_attention.default:
        return False
    return bool(func.has_kernel_for_dispatch_key(composite))


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value


def _pretended(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, Tensor) else value


def _on_host(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the named arguments for the same on the host, where nothing is pinned."""
    moved = {name: _held(value) for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    return moved | ({"device": torch.device("cpu")} if "device" in kwargs else {})
