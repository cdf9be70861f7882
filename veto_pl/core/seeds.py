"""The seed of a run, for every part that was given none of its own."""

from __future__ import annotations

import os
from copy import copy
from dataclasses import is_dataclass
from typing import TypeVar, cast

from veto_pl.core.nested import exchanged
from veto_pl.exceptions import ConfigurationError

Whole = TypeVar("Whole")

VARIABLE = "PL_GLOBAL_SEED"
"""The environment variable in which Lightning keeps the seed that it was given, for all processes of a run."""


def run_seed(given: int | None = None) -> int:
    """Return the seed that was given, else that of `lightning.seed_everything`, else 0.

    Raises:
        ConfigurationError: the environment holds no seed in the variable of Lightning.
    """
    if given is not None:
        return given
    stated = os.environ.get(VARIABLE, "0")
    try:
        return int(stated)
    except ValueError as error:
        raise ConfigurationError(
            f"The environment variable `{VARIABLE}` must be a whole number, got {stated!r}. Unset it."
        ) from error


def seeded(whole: Whole) -> Whole:
    """Return a part with the run's seed wherever one was left open, at any depth; itself where none was.

    A seed is left open by a field `seed` that is None. From here on it does not change, whatever Lightning is told.
    """
    made: Whole = exchanged(whole, seeded)
    if is_dataclass(made) and not isinstance(made, type) and getattr(made, "seed", 0) is None:
        settled = copy(cast(Whole, made))
        object.__setattr__(settled, "seed", run_seed())
        return settled
    return made
