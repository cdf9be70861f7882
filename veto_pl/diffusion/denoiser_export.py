"""A trained denoiser as a folder that diffusers reads: its transformer, its adapter, or the whole pipeline."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from veto_pl.core.mistakes import shorten
from veto_pl.diffusion.denoiser import Denoiser
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.adapters import is_adapted
from veto_pl.storage.atomic import replacing

TRANSFORMER, INDEX = "transformer", "model_index.json"
"""Where a pipeline of diffusers keeps its model, and the list of its parts."""
LORA = "lora"
"""Where an export keeps an adapter by itself."""


def export_denoiser(denoiser: Denoiser, folder: str | Path, pipeline: str | None = None) -> None:
    """Write a student into a folder, whole or not at all.

    `transformer` is its model, with an adapter merged into the weights, which `from_pretrained(folder,
    subfolder="transformer")` of its class reads. `lora` is the adapter by itself, for `load_lora_weights` of a
    pipeline. With `pipeline` the folder is one of diffusers, for `DiffusionPipeline.from_pretrained(folder)`.

    Args:
        denoiser: the student.
        folder: may hold an earlier export, which is replaced.
        pipeline: a folder or hub id of the pipeline that the student belongs to; None writes no pipeline.

    Raises:
        ConfigurationError: the folder has other files, or there is no such pipeline.
    """
    final = Path(folder).expanduser()
    check_export_folder(final)
    with _on_the_host(denoiser) as model, replacing(final) as temporary:
        merged = _merged(model)
        if pipeline is None:
            merged.save_pretrained(temporary / TRANSFORMER)
        else:
            _with_transformer(pipeline, merged, denoiser.dtype).save_pretrained(temporary)
        if is_adapted(model):
            _write_adapter(model, temporary / LORA)


def check_export_folder(folder: Path) -> None:
    """Raise `ConfigurationError` for a folder with files that are no export, which would be lost."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        index = {}
    known = {TRANSFORMER, LORA, INDEX, *(name for name, part in index.items() if isinstance(part, list))}
    others = [path.name for path in folder.iterdir() if path.name not in known] if folder.is_dir() else []
    if others or folder.is_file():
        raise ConfigurationError(
            f"The export `{folder}` would replace {f'`{others[0]}`' if others else 'a file'}. Name an empty folder."
        )


@contextmanager
def _on_the_host(denoiser: Denoiser) -> Iterator[Any]:
    """Give the model in the memory of the host, where a copy of it has room."""
    device = denoiser.device
    try:
        yield denoiser.model.to("cpu")
    finally:
        denoiser.model.to(device)


def _merged(model: Any) -> Any:
    """Return the model without an adapter, as a copy where it has one."""
    if not is_adapted(model):
        return model
    merged = copy.deepcopy(model)
    merged.fuse_lora()
    merged.unload_lora()
    return merged


def _write_adapter(model: Any, folder: Path) -> None:
    from diffusers.loaders.lora_base import LoraBaseMixin
    from peft.utils import get_peft_model_state_dict

    ((name, config),) = model.peft_config.items()
    weights = LoraBaseMixin.pack_weights(get_peft_model_state_dict(model, adapter_name=name), TRANSFORMER)
    told = LoraBaseMixin.pack_weights(config.to_dict(), TRANSFORMER)
    LoraBaseMixin.write_lora_layers(
        state_dict=weights, save_directory=str(folder), is_main_process=True, weight_name=None, save_function=None,
        safe_serialization=True, lora_adapter_metadata=told,
    )  # fmt: skip


def _with_transformer(path: str, model: Any, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(str(Path(path).expanduser()), transformer=model, torch_dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"`pipeline` of the export: given `{path}`, expected a pipeline of diffusers with a transformer such as "
            f"the student. It says: {shorten(error, 200)}"
        ) from error
