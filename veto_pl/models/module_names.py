"""Modules of a model by the ends of their names, as configurations name them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from veto_pl.core.mistakes import did_you_mean
from veto_pl.exceptions import ConfigurationError


def full_names(setting: str, wanted: Iterable[str], model: nn.Module) -> list[str]:
    """Return the names of the modules whose names end so, as whole words between dots.

    Raises:
        ConfigurationError: no module has one of the names; `setting` is where they stand.
    """
    known = [name for name, _ in model.named_modules() if name]
    found = {end: [name for name in known if name == end or name.endswith(f".{end}")] for end in wanted}
    for end, names in found.items():
        if not names:
            ends = sorted({name.rpartition(".")[2] for name in (linear_names(model) or known)})
            hint = did_you_mean(end, ends) or f"There are: {', '.join(ends)}."
            raise ConfigurationError(f"`{setting}` names `{end}`, which no module has. {hint}")
    return [name for names in found.values() for name in names]


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that hold a matrix."""
    return [name for name, module in model.named_modules() if hasattr(module, "weight") and module.weight.dim() == 2]
