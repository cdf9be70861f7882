"""A denoising model as the package sees it, and the models of a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from veto_pl.core.memory import Memories
from veto_pl.core.own_errors import OwnErrors
from veto_pl.diffusion.trajectories import Condition
from veto_pl.exceptions import ConfigurationError

Clock = Literal["sigma", "time"]
"""What a model is told of the time: how much noise there is, or how far the image is."""


class Denoiser(OwnErrors, nn.Module):
    """A velocity field around a transformer of diffusers.

    Args:
        model: takes `hidden_states`, `timestep` and the names of a condition, and returns a tuple with the prediction.
        clock: `sigma` for models that read 1 - t and predict noise minus image, as SD3 and FLUX do; `time` for those
            that read t and predict image minus noise, as Z-Image does.
        scale: what the model's time is multiplied by; SD3 counts to 1000.
    """

    def __init__(self, model: Any, clock: Clock = "sigma", scale: float = 1000.0) -> None:
        super().__init__()
        self.model = model
        self.clock = clock
        self.scale = scale

    @property
    def device(self) -> torch.device:
        """Return the device on which the model computes."""
        return next(self.parameters()).device

    def velocity(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity, image minus noise, at states.

        Args:
            z: [B, ...] states.
            t: [B] times in [0, 1].
            condition: [B, ...] by name.

        Returns:
            [B, ...] in the dtype of `z`.

        Raises:
            ConfigurationError: the model does not take this condition, or predicts another shape.
        """
        sigma = self.clock == "sigma"
        self._check(condition)
        dtype = next(self.parameters()).dtype
        told = {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}
        clock = self.scale * (1 - t if sigma else t)
        found: Tensor = self.model(hidden_states=z.to(dtype), timestep=clock, return_dict=False, **told)[0]
        if found.shape != z.shape:
            raise ConfigurationError(
                f"The model predicts {list(found.shape)} for states {list(z.shape)}. The images of `data.images` must "
                "have the channels and the size that the model is made for."
            )
        return (-found if sigma else found).to(z.dtype)

    def _check(self, condition: Condition) -> None:
        known = inspect.signature(self.model.forward).parameters
        takes_all = any(one.kind is one.VAR_KEYWORD for one in known.values())
        if not takes_all and (unknown := sorted(condition.keys() - known.keys())):
            raise ConfigurationError(
                f"`{type(self.model).__name__}` takes no `{unknown[0]}`. Name the conditions of `data.images` as its "
                f"forward does: {', '.join(known)}."
            )


@dataclass(frozen=True)
class Denoisers:
    """The models of a run. Not a module, so that a frozen teacher stays out of checkpoints and optimizers.

    Args:
        student: is trained.
        teacher: frozen, or moved by its source; None for objectives that need none.
        memories: what rollout sources remember from step to step.
    """

    student: Denoiser
    teacher: Denoiser | None = None
    memories: Memories = field(default_factory=Memories)
    sharded = False

    def required_teacher(self) -> Denoiser:
        """Return the teacher; raise `ConfigurationError` where the run has none."""
        if self.teacher is None:
            raise ConfigurationError("A teacher is needed, but `model.teacher` is not set. Name one there.")
        return self.teacher


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Run the block without dropout and gradients, then restore each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
