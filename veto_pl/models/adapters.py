"""Models with adapters of peft: which weights belong to the adapter, and the model without it.

peft replaces layers inside of a model, which otherwise stays what it was. Such a layer is known here by peft's own base
classes, whoever has put it there, so that the sources of others work too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from veto_pl.exceptions import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
"""The name of the one adapter, inside peft's layers."""


def is_adapted(model: nn.Module) -> bool:
    """Return whether peft has put an adapter into a transformers model."""
    return bool(getattr(model, "peft_config", None))


def adapter_config(model: PreTrainedModel) -> Any:
    """Return peft's configuration of the one adapter; raise `ConfigurationError` where there are several."""
    configs: dict[str, Any] = cast(Any, model).peft_config
    if len(configs) != 1:
        raise ConfigurationError(
            f"The model has {len(configs)} adapters ({', '.join(sorted(configs))}), expected one. Merge or delete the "
            "others before the run."
        )
    return next(iter(configs.values()))


def is_adapter_layer(module: nn.Module) -> bool:
    """Return whether a module is a layer of peft around a layer of the model. peft has to be imported already."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def trained_copy(module: nn.Module) -> nn.Module | None:
    """Return the copy that is trained in the place of a module (`modules_to_save`); None for any other module."""
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper):
        return None
    return cast(nn.Module, module.modules_to_save[module.active_adapters[0]])


def base_layer(module: nn.Module) -> nn.Module:
    """Return the layer of the model inside of a layer of peft; any other module is returned as it is."""
    if trained_copy(module) is not None:
        return cast(nn.Module, module.original_module)
    return cast(nn.Module, cast(Any, module).get_base_layer()) if is_adapter_layer(module) else module


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module by the name that it has in a model without adapters; a layer of peft is one module."""

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        yield name, module
        if not (is_adapter_layer(module) or trained_copy(module) is not None):
            for child_name, child in module.named_children():
                yield from walk(child, f"{name}.{child_name}" if name else child_name)

    return walk(model, "")


def adapter_names(model: nn.Module) -> set[str]:
    """Return the names, in the model's state, of what belongs to its adapter or is trained beside it."""
    found = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    for name, module in model.named_modules(remove_duplicate=False):
        if trained_copy(module) is not None:
            own, inner = module.state_dict(), ("original_module.",)
        elif is_adapter_layer(module):
            own, inner = module.state_dict(), ("base_layer.",)
        else:
            continue
        found |= {f"{name}.{key}" for key in own if not key.startswith(inner)}
    return found
