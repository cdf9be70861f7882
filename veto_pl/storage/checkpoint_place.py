"""What somebody gives as a checkpoint: looked at before anything is loaded or opened for good."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.atomic import recover
from veto_pl.storage.sharded_checkpoint import is_sharded


def check_checkpoint(path: str, run: str | Path | None = None, *words: str) -> None:
    """Raise `ConfigurationError` if a path is no checkpoint; a pipe or a device is not opened.

    Args:
        path: a file, the folder of a sharded run, or an address with `://`, which is not looked at.
        run: folder of the run, whose checkpoints are named in the error where the path has no folder.
        words: stand for a checkpoint that is looked for later.
    """
    if path in words or "://" in path:
        return
    problem = _problem(path)
    if problem is None:
        return
    folder = Path(run, "checkpoints") if run is not None and not os.path.dirname(path) else Path(path).parent
    places = (folder, Path(path), Path(path, "checkpoints"))  # beside it, and in it, where the path is the run's
    found = sorted({str(other) for place in places for other in place.glob("*.ckpt") if str(other) != path})
    expected = " or ".join([*(f"`{word}`" for word in words), "a checkpoint that a run has written"])
    remedy = f"There are: {', '.join(found[:5])}." if found else f"There is none in `{folder}`."
    raise ConfigurationError(f"The checkpoint `{path}` {problem}; expected {expected}. {remedy}")


def _problem(path: str) -> str | None:
    if path and not os.path.lexists(path) and not _recovered(path):
        return "does not exist"
    if os.path.isdir(path):
        return None if path and is_sharded(path) else "is a folder, and not that of a sharded run"
    if not os.path.isfile(path):
        return "is a pipe or a device" if path else "is no path"
    try:
        return None if zipfile.is_zipfile(path) else "cannot be read: it is cut short, or another kind of file"
    except OSError as error:
        return f"cannot be read ({error})"


def _recovered(path: str) -> bool:
    """Finish an interrupted swap of folders, and return whether the path then exists."""
    try:
        return recover(Path(path))
    except (OSError, ValueError):  # no path at all: too long, or with a character that no path has
        return os.path.lexists(path)  # another rank may have been faster
