"""Models that are made here: random weights from an architecture, and copies without some layers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from veto_pl.core.architectures import text_config
from veto_pl.core.seeds import run_seed
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.backbone import backbone
from veto_pl.models.layers import decoder_layers
from veto_pl.models.loading import Attention, DType
from veto_pl.models.reading import setting_errors
from veto_pl.models.wrapping import Wrapping
from veto_pl.seams import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ENDS = {"bos_token_id", "eos_token_id"}
"""Ids that an architecture's configuration has by default: those of the first model's tokenizer."""
TINY = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
"""Dimensions of the models that examples are made of."""


@dataclass(frozen=True)
class RandomWeights(ModelSource):
    """A new model of a known architecture. Its end-of-text ids are the tokenizer's, unless `dimensions` sets them.

    Args:
        model_type: the name that transformers gives the architecture, such as `llama`, `qwen2` or `gpt2`.
        dimensions: fields of its configuration, such as `hidden_size` or `vocab_size`.
        seed: of the weights; None is the run's. The global generators are left as they were.
        dtype: of the weights.
        attention: the attention implementation; `auto` is what transformers prefers for the architecture.
    """

    model_type: str = "llama"
    dimensions: dict[str, Any] = field(default_factory=dict, hash=False)
    seed: int | None = None
    dtype: DType = "float32"
    attention: Attention = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ConfigurationError(f"`RandomWeights.seed` must be a number of 64 bits, got {self.seed}.")

    @classmethod
    def examples(cls) -> tuple[RandomWeights, ...]:
        return cls(dimensions=TINY), cls("qwen2", dimensions=TINY, seed=3, dtype="bfloat16")

    def config(self) -> PretrainedConfig:
        from transformers import CONFIG_MAPPING, AutoConfig

        if self.model_type not in CONFIG_MAPPING:
            raise ConfigurationError(
                f"`RandomWeights.model_type` must be an architecture of transformers, got {self.model_type!r}."
            )
        with setting_errors("RandomWeights.model_type", self.model_type):
            plain = AutoConfig.for_model(self.model_type)
        _check_fields("RandomWeights.dimensions", self.dimensions, plain)
        with setting_errors("RandomWeights.dimensions", self.dimensions):
            config: PretrainedConfig = AutoConfig.for_model(self.model_type, **self.dimensions)
            for name in config.sub_configs:
                given = self.dimensions.get(name)
                if isinstance(given, dict):
                    _check_fields(f"RandomWeights.dimensions.{name}", given, type(getattr(config, name))())
            text = text_config(config)
            inner = self.dimensions if text is config else self.dimensions.get("text_config") or {}
            for part, stated in {id(config): (config, self.dimensions), id(text): (text, inner)}.values():
                for name in ENDS - set(stated):
                    with suppress(StrictDataclassError):  # of the few parts that must have one
                        setattr(part, name, None)
        if self.attention != "auto":
            config._attn_implementation = self.attention
        if self.dtype != "auto":
            config.dtype = getattr(torch, self.dtype)
        return config

    def load(self) -> PreTrainedModel:
        # On the CPU, and with its generator alone: `torch.manual_seed` would reseed every accelerator too.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(run_seed(self.seed))
            return self.skeleton()

    def skeleton(self) -> PreTrainedModel:
        with setting_errors("RandomWeights.dimensions", self.dimensions):
            return super().skeleton()


@dataclass(frozen=True)
class Pruned(Wrapping):
    """A copy of a model without some of its layers.

    Args:
        source: the model.
        drop_layers: the layers that go, counted from 0.
        keep_layers: or the layers that stay.
    """

    drop_layers: tuple[int, ...] | None = None
    keep_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.drop_layers is None) == (self.keep_layers is None):
            raise ConfigurationError(
                f"`Pruned` needs either `drop_layers` or `keep_layers`, got {self.drop_layers} and {self.keep_layers}."
            )

    @classmethod
    def examples(cls) -> tuple[Pruned, ...]:
        return cls(RandomWeights(dimensions=TINY), drop_layers=(0,)), cls(
            RandomWeights(dimensions=TINY), keep_layers=(0,)
        )

    def unquantised(self) -> ModelSource | None:
        source = self.source.unquantised()
        return None if source is None else replace(self, source=source)

    def config(self) -> PretrainedConfig:
        config = self.source.config()
        text = text_config(config)
        _keep(text, self._kept(int(text.num_hidden_layers)))
        return config

    def load(self) -> PreTrainedModel:
        model = self.source.load()
        text = text_config(model.config)
        kept = self._kept(int(text.num_hidden_layers))
        name, layers = decoder_layers(model)
        left: Any = nn.ModuleList(layers[i] for i in kept)
        backbone(model).set_submodule(name, left)
        for index, layer in enumerate(left):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = index  # the KV cache is addressed by it
        _keep(text, kept)
        _check_rebuilt(model)
        return model

    def _kept(self, layers: int) -> list[int]:
        named = self.keep_layers if self.drop_layers is None else self.drop_layers
        wrong = [i for i in named or () if not 0 <= i < layers]
        kept = sorted(set(self.keep_layers) if self.keep_layers is not None else set(range(layers)) - set(named or ()))
        if wrong or not kept:
            raise ConfigurationError(
                f"`Pruned` must name layers between 0 and {layers - 1} and keep at least one, got {list(named or ())}."
            )
        return kept


def _check_fields(setting: str, given: Mapping[str, Any], plain: PretrainedConfig) -> None:
    """Raise `ConfigurationError` for a field that a configuration of this kind does not have."""
    # Not `hasattr`: the names of methods would pass, and be overwritten.
    unknown = sorted(set(given) - {"model_type", *ENDS} - set(plain.to_dict()) - set(plain.attribute_map))
    if unknown:
        raise ConfigurationError(
            f"`{setting}` names {unknown}, which the configuration of `{plain.model_type}` does not have. Its fields "
            f"are: {', '.join(sorted(plain.to_dict()))}."
        )


def _keep(config: PretrainedConfig, kept: list[int]) -> None:
    """Drop the removed layers from the configuration: from its lists per layer, such as `layer_types`, and count."""
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, name, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)


def _check_rebuilt(model: PreTrainedModel) -> None:
    """Refuse architectures whose layers differ by their index, such as some mixtures of experts."""
    with torch.device("meta"):
        rebuilt = type(model)(model.config).state_dict()
    weights = model.state_dict()
    wrong = sorted(weights.keys() ^ rebuilt.keys())
    wrong += [name for name in weights.keys() & rebuilt.keys() if weights[name].shape != rebuilt[name].shape]
    if wrong:
        raise ConfigurationError(
            f"`Pruned` cannot drop these layers of `{type(model).__name__}`: its configuration places layers by index, "
            f"and {len(wrong)} weights would not fit it any more, for instance `{wrong[0]}`. Take other layers."
        )
