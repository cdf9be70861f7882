"""Objectives of denoising students."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from veto_pl.core.step import Step
from veto_pl.diffusion.denoiser import Denoiser, Denoisers, reading
from veto_pl.diffusion.few_steps import FewSteps, Noised, TrajectorySource
from veto_pl.diffusion.trajectories import Trajectories
from veto_pl.functional.stat import Stat
from veto_pl.seams import AnyObjective, LossOutput

Weighting = Literal["clean", "velocity"]
"""What is compared: the images that two velocities point at, or the velocities."""


class DenoisingObjective(AnyObjective):
    """What a denoising student is trained on: a target velocity at each state of a rollout.

    A class of its own says what the target is; `compared` makes a loss of it.
    """

    @property
    @abstractmethod
    def sources(self) -> tuple[TrajectorySource, ...]:
        """Return the rollouts that the loss reads."""

    @abstractmethod
    def loss(self, rollouts: Mapping[TrajectorySource, Trajectories], models: Denoisers, step: Step) -> LossOutput:
        """Compute the undivided loss terms and metrics of one micro-batch."""


def compared(rows: Trajectories, models: Denoisers, target: Tensor, weighting: Weighting = "velocity") -> LossOutput:
    r"""Return the mean square between the student's velocity and a target over states and elements, undivided.

    With `clean` a state counts by (1 - t)², which is the mean square between the images that the velocities point at,

    .. math:: \hat x = z + (1 - t)\, v

    Args:
        rows: B trajectories of K states.
        models: the student is run with a graph at all B * K states at once.
        target: [B * K, ...] velocities, without graph.
        weighting: of the states.
    """
    student = models.student.velocity(rows.flat_states, rows.flat_times, rows.flat(rows.batch.conditions))
    errors = (student - target).square().flatten(1)
    weights = (1 - rows.flat_times).square() if weighting == "clean" else torch.ones_like(rows.flat_times)
    counted = errors.new_tensor(float(errors.numel()))
    weighted = weights.to(errors) * errors.sum(dim=1)
    metrics = {"velocity_error": Stat(errors.detach().sum(), counted)}
    if rows.grid:
        of_times = weighted.detach().view(-1, len(rows.grid)).sum(dim=0)
        each = counted / len(rows.grid)
        metrics |= {loss_at(t): Stat(total, each) for t, total in zip(rows.grid, of_times, strict=True)}
    return LossOutput({"loss": Stat(weighted.sum(), counted)}, metrics)


def loss_at(t: float) -> str:
    """Return what the part of a loss that belongs to one time of a grid is called in the log."""
    return f"loss_at_t_{t:g}"


def taught(teacher: Denoiser, rows: Trajectories) -> Tensor:
    """Return the teacher's velocities at a student's states, [B * K, ...], with what the teacher reads, no graph."""
    with reading(teacher):
        return teacher.velocity(rows.flat_states, rows.flat_times, rows.flat(rows.batch.privileged))


@dataclass(frozen=True, kw_only=True)
class DOPSD(DenoisingObjective):
    r"""On-policy self-distillation of a few-step model: the teacher reads the student's states and is told more.

    .. math:: \frac 1K \sum_k w_k\, \overline{\left(v_\theta(z_k, t_k, c) - v_{\bar\theta}(z_k, t_k, c^+)\right)^2}

    The states are the student's own steps, and nothing flows back through them. The teacher is the model itself, as a
    rule its moving average, with a stronger condition, such as the target image beside the text.

    Departures: none from the code, which runs the states one by one; here they are one batch, with the same gradient.

    Args:
        rollout: whose states are trained at.
        weighting: `clean` compares the images that the velocities point at, w = (1 - t)², as the authors' code does;
            `velocity` is the paper's w = 1.

    References:
        arXiv 2605.05204
    """

    rollout: TrajectorySource = FewSteps()
    weighting: Weighting = "clean"

    @property
    def sources(self) -> tuple[TrajectorySource, ...]:
        """Return the student's steps."""
        return (self.rollout,)

    def loss(self, rollouts: Mapping[TrajectorySource, Trajectories], models: Denoisers, step: Step) -> LossOutput:
        """Compare the student with the teacher at the states."""
        rows = rollouts[self.rollout]
        return compared(rows, models, taught(models.required_teacher(), rows), self.weighting)


@dataclass(frozen=True, kw_only=True)
class FlowMatching(DenoisingObjective):
    r"""Supervised training of a velocity on images, the baseline (rectified flow).

    .. math:: \overline{\left(v_\theta(z_t, t, c) - (x - \epsilon)\right)^2}

    Args:
        rollout: noises the targets.
        reads: `conditions` trains what the student reads; `stronger` trains the model to use what a teacher is told.

    References:
        arXiv 2210.02747, 2209.03003
    """

    rollout: Noised = Noised()
    reads: Literal["conditions", "stronger"] = "conditions"
    needs_teacher = False

    @property
    def sources(self) -> tuple[TrajectorySource, ...]:
        """Return the noised targets."""
        return (self.rollout,)

    def loss(self, rollouts: Mapping[TrajectorySource, Trajectories], models: Denoisers, step: Step) -> LossOutput:
        """Compare the student with the velocity from the noise to the target."""
        rows = rollouts[self.rollout]
        if self.reads == "stronger":
            rows = rows.privileged()
        return compared(rows, models, rows.batch.targets - rows.noise)


def numbers(rollouts: Mapping[Any, Trajectories]) -> dict[str, Stat]:
    """Return how many states are trained at, as `tokens`: the training loop calls so what it counts."""
    device = next(iter(rollouts.values())).times.device
    count = torch.tensor(float(sum(rows.times.numel() for rows in rollouts.values())), device=device)
    return {"tokens": Stat(count, count)}
