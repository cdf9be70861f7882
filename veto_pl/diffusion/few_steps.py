"""Which states a velocity is trained at: the student's own few steps, or noised targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.core.bounds import Count
from veto_pl.core.memory import Remembers
from veto_pl.core.part import Part
from veto_pl.core.step import Step
from veto_pl.diffusion.denoiser import Denoiser, Denoisers, reading
from veto_pl.diffusion.trajectories import Condition, ConditionBatch, Trajectories
from veto_pl.exceptions import ConfigurationError

PAPER = (0.0, 0.1, 0.25, 0.5)
"""The times of arXiv 2605.05204, denser near the noise."""


class TrajectorySource(Part, Remembers, ABC):
    """Where the states come from that a denoising student is trained at.

    Attributes:
        grid: the times of the states, where all rows have the same.
    """

    grid: tuple[float, ...] = ()

    @abstractmethod
    def __call__(self, batch: ConditionBatch, models: Denoisers, step: Step) -> Trajectories:
        """Return the states for the rows of a batch, without graph."""


@dataclass(frozen=True)
class FewSteps(TrajectorySource):
    r"""The states that the student meets as it samples by Euler's method.

    .. math:: z_{k+1} = z_k + (t_{k+1} - t_k)\, v_\theta(z_k, t_k, c), \qquad z_1 \sim \mathcal{N}(0, I),\ t_{K+1} = 1

    Args:
        grid: the times t_1 < ... < t_K in [0, 1); the first is 0, and the last step ends at 1.
        samples: trajectories of each row, each from a noise of its own.

    References:
        arXiv 2605.05204
    """

    grid: tuple[float, ...] = PAPER
    samples: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = (*self.grid, 1.0)
        if self.grid[:1] != (0.0,) or not all(one < other for one, other in zip(self.grid, ends[1:], strict=True)):
            raise ConfigurationError(
                f"`FewSteps.grid` must rise from 0 and stay below 1, got {list(self.grid)}; 1 is where it ends."
            )

    def __call__(self, batch: ConditionBatch, models: Denoisers, step: Step) -> Trajectories:
        """Return the states z_1 ... z_K of each trajectory."""
        noise, rows = batch.noise(step, self.samples), batch.repeated(self.samples)
        states, _ = self.integrate(models.student, noise, rows.conditions)
        times = noise.new_tensor(self.grid).expand(len(noise), -1)
        return Trajectories(states, times, noise, rows, self.grid)

    def sample(self, model: Denoiser, batch: ConditionBatch, step: Step) -> Tensor:
        """Return images of a model, [B * samples, ...], in the order of the rows."""
        rows = batch.repeated(self.samples)
        return self.integrate(model, batch.noise(step, self.samples), rows.conditions)[1]

    def integrate(self, model: Denoiser, noise: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the states [B, K, ...] at the times of the grid, and where the last step ends [B, ...]."""
        states, z = [], noise
        with reading(model):
            for t, end in zip(self.grid, (*self.grid[1:], 1.0), strict=True):
                states.append(z)
                z = z + (end - t) * model.velocity(z, z.new_full((len(z),), t), condition)
        return torch.stack(states, dim=1), z


@dataclass(frozen=True)
class Noised(TrajectorySource):
    r"""The target, noised at a random time: what flow matching trains at, and no on-policy state.

    .. math:: z_t = (1 - t)\,\epsilon + t\,x, \qquad t \sim \mathcal{U}[0, 1)

    Args:
        samples: states of each row, each with a noise and a time of its own.

    References:
        arXiv 2210.02747
    """

    samples: Count = 1

    def __call__(self, batch: ConditionBatch, models: Denoisers, step: Step) -> Trajectories:
        """Return one state for each noise."""
        noise, rows = batch.noise(step, self.samples), batch.repeated(self.samples)
        times = step.uniform("time", batch.numbers, self.samples).flatten().to(noise)
        part = times.view(-1, *[1] * (noise.dim() - 1))
        states = (1 - part) * noise + part * rows.targets
        return Trajectories(states[:, None], times[:, None], noise, rows)
