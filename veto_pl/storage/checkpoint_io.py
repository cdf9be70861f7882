"""Files and folders that are there whole or not at all, and checkpoints made so."""

from __future__ import annotations

import ctypes
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem

from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.going_on import going_on, refusal

OnFailedSave = Literal["warn", "stop"]
_WRITING, _NEW, _OLD = ".writing", ".new", ".old"


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
        """Writes the checkpoint; `failure` holds the error of the last write, None where it worked."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with self.saving(path):
            write_checkpoint(checkpoint, Path(path))

    @contextmanager
    def saving(self, path: Any) -> Iterator[None]:
        """Remembers what the system refuses while the block writes a checkpoint; warns, or raises the error."""
        self.failure = None
        then = "tries again at the next save; free some space"
        with nullcontext() if self.on_failed_save == "stop" else going_on(f"The checkpoint {path}", then):
            try:
                yield
            except Exception as error:
                self.failure = refusal(error)
                raise

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint as `read_checkpoint` does, whatever `weights_only` says."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint, unless the one that was to replace it could not be written.

        A resumed run has these paths from a file, and Lightning asks only whether they begin with the run's folder.
        """
        if self.failure is None and ".." not in Path(path).parts:
            super().remove_checkpoint(path)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint whole or not at all, and removes what earlier writes into its folder left half done.

    Raises:
        OSError: it cannot be written; the file that was there still is.
    """
    for leftover in path.parent.glob(f".*{_WRITING}"):
        _remove(leftover)
    with beside(path) as temporary, temporary.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(checkpoint, watched)  # type: ignore[arg-type]  # it writes and flushes, which is enough
        except Exception as error:
            raise watched.error or error from error


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint, of tensors and plain values only: no code in it is run, and no damage goes unseen.

    Raises:
        ConfigurationError: it is missing, cut short, damaged, no checkpoint, or holds other objects; names those beside
            it.
    """
    loaded = read_plain(path, map_location)
    if not isinstance(loaded, dict) or not {"state_dict", "pytorch-lightning_version"} <= set(loaded):
        raise ConfigurationError(_unreadable(path, "is no checkpoint of a run"))
    return loaded


def read_plain(path: str | Path, map_location: Any = "cpu") -> Any:
    """Reads what `torch.save` has written: tensors and plain values only, compared with the checksums in the file.

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
    """Raises `BadZipFile` where a part of the archive is not what was written; PyTorch does not look.

    What the archive's directory calls a folder or compressed, PyTorch does not read, and returns what is in the memory.
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


@contextmanager
def beside(final: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `final` where the block ends well, and is removed where it does not.

    The block writes a file or makes a folder. It lies beside `final`, so that putting it in place moves no data.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(final)
    _remove(temporary)
    try:
        yield temporary
        swap_in(temporary, final)
    except BaseException:
        _remove(temporary)
        raise


def append(path: Path, data: bytes) -> None:
    """Appends all or nothing; where the disk refuses, the file is as it was, and the `OSError` goes on."""
    size = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        if path.is_file():
            os.truncate(path, size)
        raise


def temporary_name(final: Path) -> Path:
    """Where `beside` lets its block write."""
    return _at(final, _WRITING)


def swap_in(temporary: Path, final: Path) -> None:
    """Puts a file or folder that is written completely in the place of another; both lie in the same folder.

    A file replaces a file in one move, and where the system can exchange two names a folder does so too. Elsewhere the
    old folder is set aside first, and a process that is killed between the two moves leaves what `recover` needs to
    finish them. The data are on the disk before anything moves.
    """
    _sync(temporary)
    if temporary.is_dir() or final.is_dir():
        recover(final)
        if final.exists() and exchange(temporary, final):
            _sync_entry(final.parent)
            _remove(temporary)
            return
        temporary.replace(_at(final, _NEW))
        recover(final)
    else:
        temporary.replace(final)
    _sync_entry(final.parent)


def exchange(one: Path, other: Path) -> bool:
    """Gives each of two files or folders the name of the other, in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    here, exchanging = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchanging) == 0)


def recover(final: Path) -> bool:
    """Finishes a swap of folders that was cut short, before `final` is read; returns whether there is anything."""
    new, old = _at(final, _NEW), _at(final, _OLD)
    if new.exists():
        if final.exists():
            _remove(old)
            final.replace(old)
        new.replace(final)
        _sync_entry(final.parent)
    elif old.exists() and not final.exists():
        old.replace(final)
    _remove(old)
    return final.exists()


class _Watched:
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


def _at(final: Path, suffix: str) -> Path:
    return final.parent / f".{final.name}{suffix}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for inner in sorted(path.rglob("*")) if path.is_dir() else ():
        _sync_entry(inner)
    _sync_entry(path)


def _sync_entry(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bring_to_disk(path: Path) -> None:
    """Waits until what was written to a file is on the disk; a file that is not there is none of its business."""
    if path.exists():
        _sync_entry(path)
