"""The base classes behind the names of seams."""

from __future__ import annotations

from typing import Any

from veto_pl import metrics, seams
from veto_pl.cli.class_index import DENOISING, SEAM_NAMES

SEAMS: dict[str, tuple[type[Any], ...]] = {
    name: tuple(getattr(seams if hasattr(seams, base) else metrics, base) for base in bases)
    for name, bases in SEAM_NAMES.items()
}


def listed(name: str) -> tuple[type[Any], ...]:
    """Return the base classes behind a name of `veto-pl list`; those of denoising models are imported for it."""
    if name in SEAMS:
        return SEAMS[name]
    from veto_pl import diffusion

    return tuple(getattr(diffusion, base) for base in DENOISING[name])
