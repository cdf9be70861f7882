"""Checkpoints that are folders: every rank writes its part of each tensor, and any number of ranks reads them.

PyTorch's distributed checkpoints, without what could run code when they are read: tensors are stored apart from plain
values, which are read with `weights_only`, and their table of contents may name a few harmless classes only.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from veto_pl.checkpoint_io import swap_in, temporary_name
from veto_pl.exceptions import ConfigurationError

PLAIN = "plain.pt"
TABLE = ".metadata"
_HARMLESS = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "pathlib": ("PosixPath", "WindowsPath"),
}  # fmt: skip


def is_sharded(path: str | Path) -> bool:
    """Whether this is such a folder."""
    return Path(path, TABLE).is_file()


def save_sharded(path: Path, tensors: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Writes a folder whole or not at all. Every rank calls it.

    Args:
        path: the folder; one that is there is replaced.
        tensors: nested mappings of tensors, DTensors among them.
        plain: the rest; that of the first rank is kept.

    Raises:
        OSError: a rank could not write; the folder that was there still is.
    """
    folder = temporary_name(path)
    _first_rank_does(lambda: _make(folder))
    try:
        save(dict(tensors), storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:  # on all ranks alike
        _first_rank_does(lambda: shutil.rmtree(folder, ignore_errors=True))
        raise OSError(f"the parts could not be written: {_first(error)}") from error
    _first_rank_does(lambda: _complete(folder, path, plain))


def load_sharded_into(path: Path, tensors: dict[str, Any]) -> None:
    """Fills nested mappings of tensors in place, whatever number of ranks wrote them. Every rank calls it.

    Raises:
        ConfigurationError: the folder is incomplete, or holds what no checkpoint of this package holds.
    """
    try:
        load(tensors, storage_reader=_Reader(path), planner=_TensorsOnly())
    except CheckpointException as error:
        raise ConfigurationError(
            f"The checkpoint `{path}` does not fit the model, or is damaged: {_first(error)}"
        ) from error


def plain_values(path: Path) -> dict[str, Any]:
    """What the folder holds beside tensors."""
    try:
        values: dict[str, Any] = torch.load(path / PLAIN, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigurationError(f"The checkpoint `{path}` is incomplete: `{PLAIN}` cannot be read.") from error
    return values


def read_whole(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, put together in one process; the names are returned without it."""
    try:
        table = _Reader(path).read_metadata().state_dict_metadata
        whole = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in table.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        load(whole, storage_reader=_Reader(path), planner=_TensorsOnly(), no_dist=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, CheckpointException) as error:
        raise ConfigurationError(f"The checkpoint `{path}` is incomplete or damaged: {_first(error)}") from error
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}


def _make(folder: Path) -> None:
    """Anew: a write that was killed may have left something."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _complete(folder: Path, path: Path, plain: Mapping[str, Any]) -> None:
    try:
        torch.save(dict(plain), folder / PLAIN)
        swap_in(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _first_rank_does(work: Callable[[], None]) -> None:
    """Raises the same `OSError` on every rank where the first one fails; the others wait for it."""
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            work()
        except (OSError, RuntimeError) as error:  # PyTorch's writer has no other name for a full disk
            problem = [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(problem)
    if problem[0] is not None:
        raise OSError(problem[0])


def _first(error: BaseException) -> str:
    """What happened, without the traces of all ranks."""
    failures = getattr(error, "failures", None) or {0: (error, None)}
    cause = next(iter(failures.values()))
    return str(cause[0] if isinstance(cause, tuple) else cause).strip().partition("\n")[0][:300]


class _Reader(FileSystemReader):
    """Reads the table of contents, a pickle, without looking up any class but those that belong in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self.path, TABLE).open("rb") as file:
            _TableUnpickler(file).load()  # raises before anything is run
        table: Metadata = super().read_metadata(*args, **kwargs)
        return table


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # as Python 3.13 writes it, for any to read
        a_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if a_dtype or name in _HARMLESS.get(module, ()):
            return super().find_class(module, name)
        raise ConfigurationError(f"The checkpoint's table names `{module}.{name}`, which does not belong there.")


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise ConfigurationError(f"The checkpoint holds `{read_item.dest_index.fqn}` as a pickle, which is not read.")
