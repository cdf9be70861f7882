"""The folder of a run: which one it is, that it can be written to, and that one run at a time writes into it."""

from __future__ import annotations

import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.paths import local_path

METRICS, SAMPLES, CONFIG = "metrics.csv", "samples.jsonl", "config.yaml"
QUANTITIES = "quantities.json"
"""Names of files of a run: numbers of its steps, completions of the student, and the whole configuration."""
PICTURES, STEP = "samples", "step-"
"""Where a run keeps pictures, and what stands in front of the step in the name of one."""
LOCK = ".lock"
"""The file that is locked; it holds a line about the run that has, or had, the lock."""

_CLAIMED: dict[Path, int | None] = {}
"""Folders that this process has locked, with their open lock files; none where the lock is that of its parent."""


class RunFolder(L.Callback):
    """Names the folder that holds all files of a run, whatever loggers it has, and keeps other runs out of it.

    The lock is one of the operating system's, so it ends with the process, however that ends. The command line has this
    callback with `run_dir`. A trainer without it keeps its files where its first logger does.

    Args:
        path: the folder; `~` is the home of the user.

    Raises:
        ConfigurationError: the path is empty.
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path).strip():
            raise ConfigurationError("`run_dir`: given an empty name, expected that of a folder, such as `runs/mine`.")
        self.path = local_path(str(path))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lock the folder."""
        self.claim()

    def claim(self) -> None:
        """Make the folder and lock it until this process ends or releases it; only the first rank does.

        Raises:
            ConfigurationError: it cannot be made or written to, or another run has it.
        """
        if not is_first_rank():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._key not in _CLAIMED:
                _CLAIMED[self._key] = _open_locked(self.path / LOCK)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"`run_dir`: `{shorten(self.path)}` belongs to another run, {error.strerror}. Both would write the "
                "same files. Wait until it has ended, stop it, or name another folder with `--run_dir`."
            ) from None
        except (OSError, ValueError) as error:  # a ValueError where the name cannot be that of a file
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"`run_dir`: given `{shorten(self.path)}`, expected a folder that can be made and written to. The "
                f"system says: {reason}. Name another folder, or make room in this one."
            ) from error

    def release(self) -> None:
        """Unlock the folder."""
        descriptor = _CLAIMED.pop(self._key, None)
        if descriptor is not None:
            os.close(descriptor)

    @property
    def _key(self) -> Path:
        return self.path.resolve()


class RunTrainer(L.Trainer):
    """A trainer whose `log_dir` is the folder of the run for everyone who asks, other people's callbacks included."""

    @property
    def log_dir(self) -> str | None:
        """The folder of the run. Collective: read it on every rank."""
        return str(run_folder(self))


def run_folder(trainer: L.Trainer) -> Path:
    """Return the folder of a trainer's run, the same on all ranks. Collective: call it on every rank.

    It is that of `RunFolder`, else where Lightning would put the checkpoints of the first logger, else the trainer's
    `default_root_dir`.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    named = [callback.path for callback in callbacks if isinstance(callback, RunFolder)]
    folder = named[0] if named else _logger_folder(trainer)
    return Path(trainer.strategy.broadcast(str(folder)))


def is_first_rank() -> bool:
    """Return whether this process writes the files of the run."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _logger_folder(trainer: L.Trainer) -> Path:
    root = Path(trainer.default_root_dir)
    if not trainer.loggers:
        return root
    logger = trainer.loggers[0]
    if logger.log_dir is not None:
        return Path(logger.log_dir)
    version: Any = logger.version
    return Path(
        logger.save_dir or root,
        *(str(name) for name in (logger.name, f"version_{version}" if isinstance(version, int) else version) if name),
    )


def _open_locked(path: Path) -> int:
    """Open a file, lock it if its file system has locks, and return the descriptor.

    Raises:
        BlockingIOError: another process has the lock; its text is what that one has written into the file.
        OSError: the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, path)
        os.ftruncate(descriptor, 0)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        other = os.read(descriptor, 1000).decode(errors="replace").strip() or "which has not said which one it is"
        raise BlockingIOError(error.errno, other) from None
    except OSError as error:
        rank_zero_warn(f"{path} cannot be locked: {error}. Take care that no other run writes into this folder.")


def _close_in_child() -> None:
    """Close the locks in a forked process: a worker that outlives a killed run would keep the folder."""
    for path, descriptor in _CLAIMED.items():
        if descriptor is not None:
            os.close(descriptor)
        _CLAIMED[path] = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
