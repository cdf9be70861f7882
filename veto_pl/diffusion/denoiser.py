"""A denoising model as the package sees it, and the models of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from veto_pl.core.memory import Memories
from veto_pl.core.own_errors import OwnErrors
from veto_pl.core.ranks import Sharding
from veto_pl.diffusion.model_calls import ModelCall, call_of
from veto_pl.diffusion.trajectories import Condition
from veto_pl.exceptions import ConfigurationError


class Denoiser(OwnErrors, nn.Module):
    """A velocity field around a transformer of diffusers.

    Args:
        model: is asked for the velocity.
        call: how; None takes what is known of the model's class.

    Attributes:
        shards: how ranks share the weights; None where each has all.

    Raises:
        ConfigurationError: nothing is known of the class.
    """

    shards: Sharding | None = None

    def __init__(self, model: Any, call: ModelCall | None = None) -> None:
        super().__init__()
        self.model = model
        self.call = call_of(model) if call is None else call

    @property
    def device(self) -> torch.device:
        """Return the device on which the model computes."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype in which the model computes: that of its frozen weights, where it has any."""
        weights: list[nn.Parameter] = list(self.model.parameters())
        return min(weights, key=lambda weight: weight.requires_grad).dtype

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
        dtype = self.dtype
        told = {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}
        found = self.call(self.model, z.to(dtype), t, told)
        if found.shape != z.shape:
            raise ConfigurationError(
                f"The model predicts {list(found.shape)} for states {list(z.shape)}. The images of `data.images` must "
                "have the channels and the size that the model is made for."
            )
        return found.to(z.dtype)


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

    @property
    def sharded(self) -> bool:
        """Return whether ranks share the weights of a model."""
        return any(model is not None and model.shards is not None for model in (self.student, self.teacher))

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
