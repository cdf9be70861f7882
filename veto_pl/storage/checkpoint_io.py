"""Checkpoint files: written whole or not at all, and read without running anything in them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.atomic import recover, remove_leftovers, replacing, swap_in
from veto_pl.storage.going_on import system_error, warn_if_unwritten

OnFailedSave = Literal["warn", "stop"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints on a local disk: written beside the old one, brought to the disk, then put in its place.

    A process that is killed while it writes leaves the old checkpoint as it was; what it had written is removed at the
    next save. Where the disk is full, a quota is used up or a network disk is gone, the old checkpoint stays too, and a
    run of days goes on with a warning: the next save may find room, and stopping would lose the work since the last
    good checkpoint without need. With `stop` the error ends the run. Nothing is deleted while the last write failed.

    Args:
        on_failed_save: `warn` or `stop`.
    """

    def __init__(self, on_failed_save: OnFailedSave = "warn") -> None:
        self.on_failed_save = on_failed_save
        self.failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint, and set `failure` to the error of this write, or to None if it worked."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with self.saving(path):
            write_checkpoint(checkpoint, Path(path))

    @contextmanager
    def saving(self, path: Any) -> Iterator[None]:
        """Set `failure` if the block cannot write a checkpoint, and warn or raise as `on_failed_save` says."""
        self.failure = None
        then = "tries again at the next save; free some space"
        with nullcontext() if self.on_failed_save == "stop" else warn_if_unwritten(f"The checkpoint {path}", then):
            try:
                yield
            except Exception as error:
                self.failure = system_error(error)
                raise

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as `read_checkpoint` does, ignoring `weights_only`."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, unless the last write failed.

        A resumed run has these paths from a file, and Lightning asks only whether they begin with the run's folder.
        """
        if self.failure is None and ".." not in Path(path).parts:
            super().remove_checkpoint(path)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically, and remove temporary files that killed processes left in its folder.

    Raises:
        OSError: it cannot be written; the file that was there still is.
    """
    remove_leftovers(path.parent)
    with replacing(path) as temporary, temporary.open("wb") as file:
        target = _ErrorKeepingFile(file)
        try:
            torch.save(checkpoint, target)  # type: ignore[arg-type]  # it writes and flushes, which is enough
        except Exception as error:
            raise target.error or error from error


def rename_earlier(last: Path) -> None:
    """Rename the `last.ckpt` of an earlier run to `earlier.ckpt`."""
    earlier = last.with_name("earlier.ckpt")
    with warn_if_unwritten(earlier, f"writes its first checkpoint in the place of the earlier run's {last.name}"):
        if recover(last):
            swap_in(last, earlier)
            rank_zero_info(f"The `last.ckpt` of an earlier run in {last.parent} is now `earlier.ckpt`.")


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values, running no code in it and comparing its checksums.

    Raises:
        ConfigurationError: it is missing, cut short, damaged, no checkpoint, or holds other objects; names those beside
            it.
    """
    loaded = read_plain(path, map_location)
    if not isinstance(loaded, dict) or not {"state_dict", "pytorch-lightning_version"} <= set(loaded):
        raise ConfigurationError(_unreadable(path, "is no checkpoint of a run"))
    return loaded


def read_plain(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read a file of `torch.save` with tensors and plain values only, comparing the checksums in the file.

    Raises:
        ConfigurationError: as `read_checkpoint`, but for what the file holds.
    """
    if "://" not in str(path) and os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for ever
        raise ConfigurationError(_unreadable(path, "cannot be read (it is a folder, a pipe or a device)"))
    try:
        with get_filesystem(path).open(str(path), "rb") as file:
            _check_sums(file)
            return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # what unpickling raises depends on where the bytes go wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            _unreadable(path, f"cannot be read ({type(error).__name__}: {reason[:150]})")
        ) from error


def _check_sums(file: Any) -> None:
    """Raise `BadZipFile` if a part of the archive does not match its checksum, which PyTorch does not compare.

    A part that the archive's directory calls a folder or compressed is refused too: PyTorch would not read it, and
    would return uninitialised memory.
    """
    with zipfile.ZipFile(file) as archive:
        strange = [part.filename for part in archive.infolist() if part.external_attr or part.compress_type]
        if damaged := strange[0] if strange else archive.testzip():  # what is compressed may be endless
            raise zipfile.BadZipFile(f"its part {damaged} is damaged")
    file.seek(0)


def _unreadable(path: str | Path, what: str) -> str:
    folder = Path(path).parent
    others = sorted(other.name for other in folder.glob("*.ckpt") if other != Path(path))
    beside_it = f"Beside it there are: {', '.join(others)}." if others else f"There is no other one in `{folder}`."
    return f"The checkpoint `{path}` {what}; expected a whole file that a run has written. {beside_it}"


class _ErrorKeepingFile:
    """Remembers the error of the file, which PyTorch's writer hides behind one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self.flush: Callable[[], None] = file.flush
        self._write = file.write

    def write(self, data: Any) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self.error = error
            raise
