"""Models that share weights: another tree of modules around the very same parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import TypeVar, cast

from torch import nn

from veto_pl.models.adapters import base_layer, is_adapter_layer, trained_copy
from veto_pl.models.sharding import gather_in_methods
from veto_pl.seams import LanguageModel

M = TypeVar("M", bound=nn.Module)
Put = Callable[[nn.Module], nn.Module]
"""Gives what stands in the place of a module: itself, a part of it, or something new."""


def without_adapter(model: LanguageModel) -> LanguageModel:
    """Return the model as it is without its adapter, from the same weights; it takes no memory for them."""
    twin = _twin(model, base_layer)
    for mark in ("peft_config", "_hf_peft_config_loaded"):  # what peft and transformers know an adapter by
        vars(twin.model).pop(mark, None)
    return _apart(twin)


def with_own_adapter(model: LanguageModel) -> LanguageModel:
    """Return the model with a copy of its adapter, around the same base."""

    def put(module: nn.Module) -> nn.Module:
        if not (is_adapter_layer(module) or trained_copy(module) is not None):
            return module
        base = base_layer(module)
        return copy.deepcopy(module, {id(base): base})

    return _apart(_twin(model, put))


def _apart(twin: LanguageModel) -> LanguageModel:
    """Give the twin configurations and gathered methods of its own."""
    for name in ("config", "generation_config"):
        if hasattr(twin.model, name):
            setattr(twin.model, name, copy.deepcopy(getattr(twin.model, name)))
    if twin.shards is not None:
        gather_in_methods(twin)
    return twin


def _twin(model: M, put: Put) -> M:
    """Return a tree of shallow copies of the modules, each with a mode of its own.

    Modules that hold weights and nothing else are the same ones, and the dictionaries of parameters and buffers are
    shared everywhere: a weight that is moved, or gathered from its parts, is so in both trees.
    """
    known: dict[nn.Module, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if module not in known:
            stands = put(module)
            known[module] = of(stands) if stands in module.children() else _copied(stands, of, own=stands is module)
        return known[module]

    return cast(M, of(model))


def _copied(module: nn.Module, of: Put, *, own: bool) -> nn.Module:
    """Return the copy of a module; one that was made anew for its place, and a bare layer, is taken as it is."""
    if not own or (not module._modules and (module._parameters or module._buffers)):
        return module
    twin: nn.Module = object.__new__(type(module))  # not `copy.copy`, by which FSDP2 makes the plain class of its own
    twin.__dict__.update(vars(module))
    twin.__dict__["_modules"] = {name: None if one is None else of(one) for name, one in module._modules.items()}
    for name, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module:
            twin.__dict__[name] = MethodType(value.__func__, twin)
    _share_unit(module, twin)
    return twin


def _share_unit(module: nn.Module, twin: nn.Module) -> None:
    """Let FSDP2 take the twin of one of its units for that unit, so that running it gathers the same weights."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        # Private, and the only way: the unit's state, which its hooks hold, is looked up by the module.
        from torch.distributed._composable_state import _get_module_state, _insert_module_state

        if (state := _get_module_state(module)) is not None:
            _insert_module_state(twin, state)
