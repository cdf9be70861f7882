"""Checkpoints that are folders: every rank writes its part of each tensor, and any number of ranks reads them.

PyTorch's distributed checkpoints, without what could run code when they are read: tensors are stored apart from plain
values, which are read with `weights_only`, and their table of contents may name a few harmless classes only. Checksums
lie beside them.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping
from enum import EnumMeta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from veto_pl.core.ranks import rank_and_size
from veto_pl.exceptions import ConfigurationError, DataError, VetoError
from veto_pl.storage.atomic import swap_in, temporary_name
from veto_pl.storage.checkpoint_io import read_plain
from veto_pl.storage.checksums import damaged, read_sums, sha256_of, write_sums

T = TypeVar("T")
PLAIN = "plain.pt"
TABLE = ".metadata"
_ALLOWED_CLASSES = {
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
    """Return whether a path is the folder of a sharded checkpoint."""
    return Path(path, TABLE).is_file()


def save_sharded(path: Path, tensors: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Write a folder atomically. Collective: call it on every rank.

    Args:
        path: the folder; one that is there is replaced.
        tensors: nested mappings of tensors, DTensors among them.
        plain: the rest; that of the first rank is kept.

    Raises:
        OSError: a rank could not write; the folder that was there still is.
    """
    folder = temporary_name(path)
    _run_on_first_rank(lambda: _make_empty(folder))
    try:
        save(dict(tensors), storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:  # on all ranks alike
        _run_on_first_rank(lambda: shutil.rmtree(folder, ignore_errors=True))
        raise OSError(f"the parts could not be written: {_first_failure(error)}") from error
    shares = _on_all_ranks(lambda: _sums_of_own_parts(folder), OSError)
    sums = {name: digest for share in shares for name, digest in share.items()}
    _run_on_first_rank(lambda: _finish(folder, path, plain, sums))


def check_sharded(path: Path) -> None:
    """Compare the folder with its checksums, each rank a share of the files. Collective: call it on every rank.

    A folder of an earlier version has none; it is read with a warning.

    Raises:
        ConfigurationError: something in it is not what was written; all ranks raise it.
    """
    rank, ranks = rank_and_size()

    def look() -> bool:
        sums = read_sums(path)
        if sums is None:
            return False
        if wrong := damaged(path, sums, sorted(sums)[rank::ranks]) or sorted({TABLE, PLAIN} - set(sums)):
            raise DataError(f"`{wrong[0]}` is not what was written")
        return True

    try:
        has_sums = _on_all_ranks(look, DataError)
    except DataError as error:
        raise ConfigurationError(f"The checkpoint `{path}` is damaged: {error}. Take an earlier one.") from error
    if not all(has_sums):
        rank_zero_warn(f"The checkpoint `{path}` has no checksums, so damage to it would not be noticed.")


def load_sharded_into(path: Path, tensors: dict[str, Any]) -> None:
    """Fill nested mappings of tensors in place, whatever number of ranks wrote them. Collective: call it on every rank.

    Raises:
        ConfigurationError: the folder is incomplete, or holds what no checkpoint of this package holds.
    """
    try:
        load(tensors, storage_reader=_Reader(path), planner=_TensorsOnly())
    except CheckpointException as error:
        raise ConfigurationError(
            f"The checkpoint `{path}` does not fit the model, or is damaged: {_first_failure(error)}"
        ) from error


def plain_values(path: Path) -> dict[str, Any]:
    """Return the plain values that the folder holds beside tensors; raise `ConfigurationError` if damaged."""
    values: dict[str, Any] = read_plain(path / PLAIN)
    if not isinstance(values, dict):
        raise ConfigurationError(f"The checkpoint `{path}` is damaged: `{PLAIN}` holds no settings by name.")
    return values


def read_whole(path: Path, prefix: str) -> dict[str, Tensor]:
    """Return the whole tensors whose names begin with `prefix`, by their names without it, in one process."""
    try:
        table = _Reader(path).read_metadata().state_dict_metadata
        whole = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in table.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        load(whole, storage_reader=_Reader(path), planner=_TensorsOnly(), no_dist=True)
    except VetoError:
        raise
    except (Exception, CheckpointException) as error:  # what reading raises depends on where the bytes go wrong
        raise ConfigurationError(
            f"The checkpoint `{path}` is incomplete or damaged: {_first_failure(error)}"
        ) from error
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}


def _make_empty(folder: Path) -> None:
    """Make an empty folder, removing what an interrupted write may have left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sums_of_own_parts(folder: Path) -> dict[str, str]:
    """Return the hashes of the files that this rank has written, which its machine still has in memory."""
    return {part.name: sha256_of(part) for part in sorted(folder.glob(f"__{rank_and_size()[0]}_*"))}


def _on_all_ranks(work: Callable[[], T], failure: type[Exception]) -> list[T]:
    """Run `work` and return its results of all ranks; if one raises `failure` or `OSError`, all raise `failure`."""
    outcome: tuple[T | None, str | None]
    try:
        outcome = work(), None
    except (failure, OSError) as error:
        outcome = None, str(error)
    ranks = rank_and_size()[1]
    outcomes = [outcome] * ranks
    if ranks > 1:
        dist.all_gather_object(outcomes, outcome)
    if problem := next((problem for _, problem in outcomes if problem is not None), None):
        raise failure(problem)
    return [cast(T, value) for value, _ in outcomes]


def _finish(folder: Path, path: Path, plain: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    try:
        torch.save(dict(plain), folder / PLAIN)
        write_sums(folder, {**sums, **{name: sha256_of(folder / name) for name in (PLAIN, TABLE)}})
        swap_in(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _run_on_first_rank(work: Callable[[], None]) -> None:
    """Run `work` on the first rank while the others wait; if it fails, raise the same `OSError` on every rank."""
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            work()
        except (OSError, RuntimeError) as error:  # PyTorch's writer has no other name for a full disk
            problem = [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(problem)
    if problem[0] is not None:
        raise OSError(problem[0])


def _first_failure(error: BaseException) -> str:
    """Return the message of the first failure, without the tracebacks of all ranks."""
    failures = getattr(error, "failures", None) or {0: (error, None)}
    cause = next(iter(failures.values()))
    return str(cause[0] if isinstance(cause, tuple) else cause).strip().partition("\n")[0][:300]


class _Reader(FileSystemReader):
    """Reads the table of contents, a pickle, without looking up any class but those that belong in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self.path, TABLE).open("rb") as file:
            table: Metadata = _TableUnpickler(file).load()  # once: read again, it could be another file
        parts = {part.relative_path for part in table.storage_data.values()}
        if strange := sorted(name for name in parts if name != Path(name).name or not Path(self.path, name).is_file()):
            raise ConfigurationError(f"The checkpoint's table names `{strange[0]}`, which is no file of its folder.")
        table.storage_meta = table.storage_meta or StorageMeta()
        table.storage_meta.load_id = self.load_id
        return table


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # as Python 3.13 writes it, for any to read
        if (module, name) == ("builtins", "getattr"):  # as Python 3.11.0 to 3.11.3 write a member of an Enum
            return _enum_member
        a_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if a_dtype or name in _ALLOWED_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise ConfigurationError(f"The checkpoint's table names `{module}.{name}`, which does not belong there.")


def _enum_member(kind: Any, name: Any) -> Any:
    """Return a member of an allowed Enum by its name; refuse whatever else `getattr` could reach."""
    if isinstance(kind, EnumMeta) and isinstance(name, str) and name in kind.__members__:
        return kind[name]
    raise ConfigurationError(f"The checkpoint's table asks {kind!r} for `{name}`, which does not belong there.")


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise ConfigurationError(f"The checkpoint holds `{read_item.dest_index.fqn}` as a pickle, which is not read.")
