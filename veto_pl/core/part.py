"""What every part says of itself, whatever it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Protocol

from veto_pl.core.bounds import Bounded
from veto_pl.core.mistakes import Mistake
from veto_pl.core.nested import exchanged
from veto_pl.core.sampling import Sampling
from veto_pl.core.step import Step
from veto_pl.functional.compiled_numbers import Number, as_tensor


class Setup(Protocol):
    """What is about to run, as a part may read it. Nothing of it has been loaded."""

    @property
    def stage(self) -> str:
        """`fit`, `validate`, `test` or `predict`."""

    @property
    def trainer(self) -> Mapping[str, Any]:
        """The trainer's settings by name; what is not known is left out."""

    @property
    def objective(self) -> Any:
        """The `Objective`."""

    @property
    def task(self) -> Any:
        """The `Task`."""

    @property
    def template(self) -> Any:
        """The `Template` of the rows."""

    @property
    def models(self) -> Mapping[str, Any]:
        """The configuration of each model by its path, such as `model.teacher`; an error where it cannot be read."""

    @property
    def teachers(self) -> Sequence[str]:
        """The names of the teachers; `teacher` is `model.teacher`."""

    @property
    def vocab_size(self) -> int | None:
        """Ids of the model that has the fewest; None where no model says."""

    @property
    def evaluation(self) -> Sampling:
        """How the student answers in a validation."""

    @property
    def metrics(self) -> Sequence[str]:
        """What a validation measures, by the logged names, such as `validation/accuracy`."""

    @property
    def validates(self) -> bool:
        """Whether there is a validation."""

    @property
    def rewards_for(self) -> str:
        """The class that learns from rewards of the task; empty where none does."""

    @property
    def references_for(self) -> str:
        """The class that reads the task's reference completions; empty where none does."""

    @property
    def rollouts_for(self) -> str:
        """The class by which a model writes completions to train on; empty where none does."""


NONE: tuple[str, ...] = ()
"""No settings."""


class Part(Bounded):
    """What algorithms, models and data are composed of: the base of all seams.

    Attributes:
        tensor_numbers: settings that may also be 0-dim tensors, whose values nobody looks at. A compiled kernel then
            serves all of their values, where it would be compiled anew for each.
    """

    tensor_numbers = NONE

    def with_tensors(self, number: Number, step: Step) -> Any:
        """Return the same part for a compiled kernel: `tensor_numbers` and present values of schedules are tensors.

        Args:
            number: makes a tensor.
            step: where training stands.
        """
        made = exchanged(self, lambda part: part.with_tensors(number, step) if isinstance(part, Part) else part)
        for name in self.tensor_numbers:
            value = getattr(made, name)
            if (new := as_tensor(value, number)) is not value:
                made = copy(made) if made is self else made
                object.__setattr__(made, name, new)
        return made

    def requirements(self, setup: Setup, path: str) -> Iterable[Mistake]:
        """Yield what is wrong with a run that uses this part; it is asked before any model is loaded.

        Args:
            setup: what is about to run.
            path: of this part in the configuration; that of a setting of it is `f"{path}.init_args.{name}"`.
        """
        return ()

    @property
    def is_neutral(self) -> bool:
        """Whether it gives back what it is given, so that it could be left out."""
        return False
