"""The weights of a model as one without adapters has them: merged and, where they are stored quantised, as numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from veto_pl.functional.heads import full_precision
from veto_pl.models.adapters import is_adapted, is_adapter_layer, plain_modules, trained_copy
from veto_pl.models.sharding import resharded, whole

if TYPE_CHECKING:
    from veto_pl.seams import LanguageModel


@dataclass
class Rounding:
    """How much of an adapter is lost where merged weights are rounded to the dtype of the base.

    Attributes:
        added: sum of the squares of what the adapter adds to the weights.
        lost: sum of the squares of what rounding changes.
    """

    added: float = 0.0
    lost: float = 0.0

    @property
    def share(self) -> float:
        """The size of what is lost over the size of what is added; 0 where the adapter adds nothing."""
        return (self.lost / self.added) ** 0.5 if self.added else 0.0


def whole_weights(model: LanguageModel, rounding: Rounding | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each weight and stored buffer, gathered one at a time, with an adapter merged.

    Collective: exhaust it on every rank. Tied weights have one name, unless the adapter has set them apart. Merged
    weights are computed in float32 and rounded once, to the dtype of the base; quantised ones get the model's dtype.

    Args:
        model: with an adapter or without; it stays as it is.
        rounding: is added up on the way.
    """
    with resharded(model), torch.no_grad():
        if not is_adapted(model.model):
            for name, weight in _stored(model.model):
                yield name, whole(weight.detach())
            return
        seen: set[Any] = set()
        for name, module in plain_modules(model.model):
            for local, key, weight in _weights_of(module, model.model.dtype, rounding):
                if key not in seen:
                    seen.add(key)
                    yield f"{name}.{local}" if name else local, weight


def weight_shapes(model: LanguageModel) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Return name, dtype and shape of what `whole_weights` yields. Collective where there is an adapter."""
    weights = whole_weights(model) if is_adapted(model.model) else _stored(model.model)
    return [(name, weight.dtype, tuple(weight.shape)) for name, weight in weights]


def plain_config(model: LanguageModel) -> Any:
    """Return a copy of the configuration for the weights that `whole_weights` yields.

    They are not quantised, and head and embedding are two matrices where the adapter has changed one of them.
    """
    network: Any = model.model
    config = copy.deepcopy(network.config)
    if is_adapted(network):
        for inner in {id(config): config, id(config.get_text_config()): config.get_text_config()}.values():
            inner.__dict__.pop("quantization_config", None)
        ends = (network.get_input_embeddings(), network.get_output_embeddings())
        if any(is_adapter_layer(end) or trained_copy(end) is not None for end in ends):
            config.tie_word_embeddings = False
    return config


def _stored(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return name and tensor, perhaps sharded, of each weight and stored buffer, tied ones once."""
    stored = network.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in network.named_buffers() if name in stored]
    return [*network.named_parameters(), *buffers]


def _weights_of(module: nn.Module, dtype: torch.dtype, rounding: Rounding | None) -> Iterator[tuple[str, Any, Tensor]]:
    """Yield the local name of each weight of one plain module, what it is known by, and its value."""
    if (trained := trained_copy(module)) is not None:
        for name, weight in _stored(trained):
            yield name, id(weight), whole(weight.detach())
    elif is_adapter_layer(module):
        for name, weight in _merged(module, dtype, rounding).items():
            yield name, (id(module), name), weight
    else:
        for name, own in module._parameters.items():
            if own is not None:
                yield name, id(own), _number(module, name, own, dtype)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield name, id(buffer), whole(buffer)


def _number(module: nn.Module, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight whole and, where it is stored quantised, as numbers of the model's dtype."""
    return _dequantised(module).to(dtype) if name == "weight" and is_quantised(module) else whole(weight.detach())


def is_quantised(module: nn.Module) -> bool:
    """Return whether the weight of a layer is stored quantised, by bitsandbytes or torchao."""
    weight = module._parameters.get("weight")
    if weight is None:
        return False
    return not weight.is_floating_point() or type(weight).__module__.startswith("torchao")


def _dequantised(module: nn.Module) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    weight, state = module._parameters["weight"], getattr(module, "state", None)
    scale = getattr(state, "SCB", None)
    scale = getattr(weight, "SCB", None) if scale is None else scale
    if scale is not None and weight is not None:  # 8 bits: peft would leave the layer unable to run on a CPU
        number: Tensor = weight.data.float() * scale.view(-1, 1) / 127
    else:
        number = dequantize_module_weight(module)
    return number.detach()


def _merged(layer: nn.Module, dtype: torch.dtype, rounding: Rounding | None) -> dict[str, Tensor]:
    """Return the weights of a layer with its adapter merged by peft, in a stand-in for the base in float32."""
    from peft.tuners.lora.layer import Linear

    base = cast(Any, layer).get_base_layer()
    packed = is_quantised(base)
    stand_in = _in_float32(base, packed)
    before = stand_in.weight.clone() if rounding is not None else None
    with _whole_adapter(layer), full_precision(stand_in.weight.device):
        layer._modules["base_layer"] = stand_in
        try:
            # Layers around quantised weights would quantise the sum again.
            (Linear if packed else cast(Any, type(layer))).merge(layer)
        finally:
            layer._modules["base_layer"] = base
            cast(Any, layer).merged_adapters.clear()
    exact = {name: weight.detach() for name, weight in stand_in.named_parameters()}
    merged = {name: weight.to(dtype if packed else base._parameters[name].dtype) for name, weight in exact.items()}
    if rounding is not None and before is not None:
        rounding.added += float((exact["weight"] - before).square().sum())
        rounding.lost += float((merged["weight"].float() - exact["weight"]).square().sum())
    return merged


def _in_float32(base: Any, packed: bool) -> Any:
    """Return a copy of a layer whose weights are whole, numbers, and float32."""
    if packed:
        stand_in: Any = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
        own = {"weight": _dequantised(base), "bias": base.bias}
    else:
        stand_in, own = copy.copy(base), base._parameters
    stand_in._parameters = {
        name: None if weight is None else nn.Parameter(whole(weight.detach()).to(torch.float32, copy=True), False)
        for name, weight in own.items()
    }
    return stand_in


@contextmanager
def _whole_adapter(layer: nn.Module) -> Iterator[None]:
    """Hold the adapter's weights whole in a layer while the block lasts. Collective where they are sharded."""
    inside = [m for name, m in layer.named_modules() if not name.startswith("base_layer")]
    before = [(module, dict(module._parameters)) for module in inside]
    try:
        for module, own in before:
            for name, weight in own.items():
                if weight is not None and hasattr(weight, "full_tensor"):
                    module._parameters[name] = nn.Parameter(whole(weight.detach()), False)
        yield
    finally:
        for module, own in before:
            module._parameters.update(own)
