"""Paths as they are given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

Given = TypeVar("Given", str, "str | None")


def at_home(path: Given) -> Given:
    """Return the path with `~` and `~name` replaced by that user's home; one of nobody's, and None, as they are."""
    return os.path.expanduser(path) if path is not None else path


def local_path(path: str) -> Path:
    """Return what `at_home` does, as a `Path`."""
    return Path(at_home(path))
