"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WRITING, _NEW, _OLD = ".writing", ".new", ".old"


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Give a temporary path that replaces `final` if the block succeeds, and is removed if it raises.

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
    """Append all of the data or none; if the write fails, truncate the file to its old size and raise `OSError`."""
    size = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        if path.is_file():
            os.truncate(path, size)
        raise


def temporary_name(final: Path) -> Path:
    """Return the path that `replacing` gives to its block."""
    return _hidden_beside(final, _WRITING)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder."""
    for leftover in folder.glob(f".*{_WRITING}"):
        _remove(leftover)


def swap_in(temporary: Path, final: Path) -> None:
    """Replace a file or folder by one that is completely written; both lie in the same folder.

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
        temporary.replace(_hidden_beside(final, _NEW))
        recover(final)
    else:
        temporary.replace(final)
    _sync_entry(final.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two files or folders atomically. Return False if the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    here, exchanging = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchanging) == 0)


def recover(final: Path) -> bool:
    """Finish an interrupted swap of folders before `final` is read. Return whether `final` exists."""
    new, old = _hidden_beside(final, _NEW), _hidden_beside(final, _OLD)
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


def _hidden_beside(final: Path, suffix: str) -> Path:
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
    """Wait until what was written to a file is on the disk; do nothing if there is no such file."""
    if path.exists():
        _sync_entry(path)
