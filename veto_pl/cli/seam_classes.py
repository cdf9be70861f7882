"""The base classes behind the names of `veto-pl list`."""

from __future__ import annotations

from typing import Any

from veto_pl import metrics, seams
from veto_pl.cli.class_index import SEAM_NAMES

SEAMS: dict[str, tuple[type[Any], ...]] = {
    name: tuple(getattr(seams if hasattr(seams, base) else metrics, base) for base in bases)
    for name, bases in SEAM_NAMES.items()
}
