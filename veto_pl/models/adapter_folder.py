"""An adapter and its base as files: what peft reads, beside a base that another machine can find."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.adapters import adapter_config, adapter_names, is_adapted
from veto_pl.models.loading import Pretrained
from veto_pl.models.merging import whole_weights
from veto_pl.models.sharding import resharded, whole
from veto_pl.models.trainable import quantisation
from veto_pl.models.twins import without_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from veto_pl.seams import LanguageModel, ModelSource

BASE = "base"
"""The folder of the base, inside that of the adapter."""


@dataclass(frozen=True)
class AdapterFiles:
    """What a folder with an adapter is made of.

    Args:
        adapter: the adapter's weights by their names in the model.
        place: keyword arguments of `from_pretrained` for a base on the hub; None where it is written beside.
        base: the weights of a base that is written beside.
        unquantised: the source of a base that is written beside as it was before it was quantised.
    """

    adapter: Mapping[str, Tensor]
    place: Mapping[str, Any] | None
    base: Mapping[str, Tensor]
    unquantised: ModelSource | None = None


def collect(student: LanguageModel, source: ModelSource | None) -> AdapterFiles:
    """Gather the adapter, and its base where nobody else could find it. Collective: call it on every rank.

    Args:
        student: with an adapter.
        source: of the student, which knows whether its base is on the hub.

    Raises:
        ConfigurationError: the base is quantised, and nobody knows what it was before.
    """
    base = None if source is None else source.frozen_base
    place = None if base is None else base.published()
    packed = quantisation(student.model.config) is not None
    before = base.unquantised() if packed and base is not None else None
    if packed and before is None and place is None:
        raise ConfigurationError(
            "The base was quantised before it was stored, and is no model of the hub, so the export cannot write it "
            "beside the adapter. Export it merged (`export.adapter: merged`)."
        )
    names = adapter_names(student.model)
    with resharded(student):
        state = student.model.state_dict()
        adapter = {name: whole(state[name].detach()).cpu() for name in state if name in names}
    beside = place is None and not packed
    weights = {name: w.cpu() for name, w in whole_weights(without_adapter(student))} if beside else {}
    return AdapterFiles(adapter, place, weights, None if place is not None else before)


def write_adapter(student: LanguageModel, files: AdapterFiles, folder: Path) -> None:
    """Write the adapter as peft does, and its base beside it unless it is on the hub."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    network: Any = student.model
    settings = copy.deepcopy(adapter_config(network))
    place = files.place or {"pretrained_model_name_or_path": f"./{BASE}", "revision": None}
    settings.base_model_name_or_path = place["pretrained_model_name_or_path"]
    settings.revision, settings.inference_mode = place["revision"], True
    if isinstance(settings.target_modules, set):
        settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(str(folder))
    named = get_peft_model_state_dict(network, dict(files.adapter), _name_of(network), save_embedding_layers=False)
    whole_names = {f"base_model.model.{name}": weight.contiguous() for name, weight in named.items()}
    save_file(whole_names, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if files.unquantised is not None:
        files.unquantised.load().save_pretrained(folder / BASE)
    elif files.place is None:
        twin = without_adapter(student).model
        twin.save_pretrained(folder / BASE, state_dict=dict(files.base))


def read_adapter(folder: Path, files: AdapterFiles, student: LanguageModel) -> PreTrainedModel:
    """Return the model that the folder describes, read as its model card says."""
    from peft import PeftModel

    place = files.place or {"pretrained_model_name_or_path": str(folder / BASE), "revision": None}
    dtype = cast(Any, str(student.model.dtype).removeprefix("torch."))
    settings = getattr(student.model.config, "quantization_config", None)
    base = Pretrained(
        place["pretrained_model_name_or_path"],
        place["revision"],
        dtype,
        trust_remote_code=student.model._auto_class is not None,
        quantization_config=None if settings is None else as_settings(settings),
    )
    read: PreTrainedModel = PeftModel.from_pretrained(base.load(), str(folder)).get_base_model()
    return read


def as_settings(quantization_config: Any) -> dict[str, Any]:
    """Return the settings of a quantisation as plain values."""
    plain = quantization_config if isinstance(quantization_config, Mapping) else quantization_config.to_dict()
    return {name: getattr(value, "value", value) for name, value in plain.items() if not name.startswith("_")}


def _name_of(network: Any) -> str:
    assert is_adapted(network)
    return str(next(iter(network.peft_config)))
