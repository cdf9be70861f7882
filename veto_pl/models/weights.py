"""Weights in safetensors files, read a part at a time, and models that are made without ever holding them whole."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from veto_pl.core.ranks import Sharding
from veto_pl.exceptions import DataError
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.reading import INDEX, check_sums
from veto_pl.models.sharding import local_part, shard
from veto_pl.models.tying import differing_names, tied, untie
from veto_pl.seams.models import ModelSource, StoredWeights


@dataclass(frozen=True)
class SafetensorsWeights:
    """Tensors in safetensors files.

    Args:
        files: the file that holds each tensor, by the tensor's name.
    """

    files: Mapping[str, Path]

    @classmethod
    def find(cls, path: str, revision: str | None = None) -> SafetensorsWeights:
        """Find the files of a local folder or, downloaded if need be, of a hub id.

        Raises:
            DataError: a file that is named does not exist or is not safetensors.
        """
        folder = Path(path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"]))
        if (folder / INDEX).is_file():
            names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return cls({name: folder / Path(file).name for name, file in names.items()})
        files = sorted(folder.glob("*.safetensors"))
        return cls({name: file for file in files for name in _open(file).keys()})  # noqa: SIM118

    def match(self, model: nn.Module) -> bool:
        """Return whether each weight of `model` is stored under its own name, and so needs no conversion."""
        return {name for name, _ in model.named_parameters()} <= set(self.files)

    def parts(self, rows: Mapping[str, slice | None]) -> Iterator[tuple[str, Tensor]]:
        """Yield the named tensors, file by file; of each only `rows` of its first dimension, or all of it."""
        for file in sorted({self.files[name] for name in rows}):
            handle = _open(file)
            for name in (name for name in rows if self.files[name] == file):
                part = rows[name]
                yield name, handle.get_tensor(name) if part is None else handle.get_slice(name)[part]

    def shape(self, name: str) -> list[int]:
        """Return the shape of the whole tensor."""
        shape: list[int] = self.slices([name])[name].get_shape()
        return shape

    def check(self, part: slice) -> None:
        """Compare the files at `part` of their sorted list with the checksums beside them; raise `DataError` if one
        differs.
        """
        for file in sorted(set(self.files.values()))[part]:
            check_sums(file.parent, [file.name])

    def slices(self, names: Collection[str]) -> dict[str, Any]:
        """Return those of the tensors that are stored, not yet read."""
        return {name: _open(self.files[name]).get_slice(name) for name in names if name in self.files}


def load_sharded(source: ModelSource, vocab_size: int, sharding: Sharding) -> CausalLM:
    """Load a model of which this rank only ever holds its part. Collective: call it on every rank.

    Where the source has its weights in files under the model's own names, each rank reads its rows from there.
    Otherwise the first rank makes the model whole, on the CPU, and hands out one tensor after another.

    Args:
        source: where the model comes from.
        vocab_size: number of real ids.
        sharding: the ranks, and where to keep the part.
    """
    with parameters_on_meta():
        model = CausalLM(source.skeleton(), vocab_size)
    stored = source.stored()
    if stored is not None and not stored.match(model.model):
        stored = None
    whole = source.load() if stored is None and sharding.first else None
    _check_files(stored, sharding)
    untie(model.model, _names_to_untie(stored, whole, tied(model.model), sharding))
    shard(model, sharding)
    _materialise(model, sharding.device)
    with torch.no_grad():
        if stored is not None:
            _read_weights(stored, model.model, sharding)
        else:
            _broadcast_weights(whole, model.model, sharding)
    return model


def _check_files(stored: StoredWeights | None, sharding: Sharding) -> None:
    """Compare this rank's share of the files with their checksums; raise on all ranks where one is damaged.

    Collective: call it on every rank.
    """
    problem = None
    if stored is not None:
        try:
            stored.check(slice(sharding.mesh.get_local_rank(), None, sharding.mesh.size()))
        except (DataError, OSError) as error:
            problem = error
    if sharding.any(problem is not None):
        raise problem or DataError("The weights are damaged; another rank says which file.")


def _names_to_untie(
    stored: StoredWeights | None, whole: nn.Module | None, names: list[list[str]], sharding: Sharding
) -> list[str]:
    """Return the names that the configuration gives to one weight and the stored weights do not.

    Collective: the first rank looks and tells the others.
    """
    found: list[list[str]] = [[]]
    if sharding.first and stored is not None:
        found = [
            [n for group in names for n in differing_names(group, stored.slices(group), lambda part: part.get_shape())]
        ]
    elif whole is not None:
        together = {name for group in tied(whole) for name in group}
        found = [[name for group in names for name in group[1:] if name not in together]]
    dist.broadcast_object_list(found, group=sharding.mesh.get_group(), group_src=0)
    return found[0]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Make new parameters without memory; buffers, which files do not hold, are computed as always."""
    # Not `torch.device("meta")`: buffers that are computed, such as rotary frequencies, would have no values then.
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _materialise(model: nn.Module, device: torch.device) -> None:
    """Give the parameters memory. `to_empty` would do so for each name, and untie the tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in made:
                made[parameter] = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = made[parameter]
    model.to(device)


def _read_weights(stored: StoredWeights, model: nn.Module, sharding: Sharding) -> None:
    buffers = dict(model.named_buffers())
    targets: dict[str, Tensor] = {name: buffers[name] for name in stored.slices(buffers)}
    rows: dict[str, slice | None] = dict.fromkeys(targets)
    for name, weight in model.named_parameters():
        _check_shape(name, stored.shape(name), weight)
        targets[name], rows[name] = local_part(weight), sharding.part(len(weight))
    for name, part in stored.parts(rows):
        _copy(targets[name], part, name)


def _broadcast_weights(loaded: nn.Module | None, model: nn.Module, sharding: Sharding) -> None:
    group, first = sharding.mesh.get_group(), sharding.first
    whole = loaded.state_dict() if loaded is not None else {}
    learnt = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    # One broadcast a tensor: every rank makes the same skeleton, so all go through the names in the same order.
    for name, weight in (*model.named_parameters(), *learnt.items()):
        buffer = torch.empty(weight.shape, dtype=weight.dtype, device=sharding.device)
        if first:
            _copy(buffer, whole.pop(name), name)
        dist.broadcast(buffer, group=group, group_src=0)
        weight.copy_(buffer) if name in learnt else local_part(weight).copy_(buffer[sharding.part(len(buffer))])


def _copy(target: Tensor, stored: Tensor, name: str) -> None:
    _check_shape(name, list(stored.shape), target)
    if not bool(stored.isfinite().all()):
        raise DataError(f"The stored weight `{name}` has numbers that are NaN or infinite. Fetch or save it again.")
    target.copy_(stored)


def _check_shape(name: str, stored: list[int], expected: Tensor) -> None:
    if stored != list(expected.shape):
        raise DataError(
            f"The stored weight `{name}` has the shape {stored}, expected {list(expected.shape)} from the model's "
            "configuration. The files are damaged, or belong to another configuration."
        )


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise DataError(f"`{file}` is not a readable safetensors file ({error}). Fetch or save it again.") from error
