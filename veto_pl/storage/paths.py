"""Paths as they are given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

Given = TypeVar("Given", str, "str | None")


def expand_home(path: Given) -> Given:
    """Return the path with `~` and `~name` replaced by that user's home; an unknown user and None are kept."""
    return os.path.expanduser(path) if path is not None else path


def local_path(path: str) -> Path:
    """Return the path as a `Path`, with `~` and `~name` replaced as `expand_home` does."""
    return Path(expand_home(path))
