"""What a denoising student is given, and what it produces.

Time runs from 0, which is noise, to 1, which is the image; a velocity is image minus noise (rectified flow,
arXiv 2209.03003). Shapes: `B` rows, `K` states of a trajectory, `...` the axes of an image or latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from veto_pl.core.step import Step

Condition = Mapping[str, Tensor]
"""What a model is conditioned on: arguments of its forward by name, [B, ...] each."""


@dataclass(frozen=True)
class ConditionBatch:
    """Rows of a task.

    Args:
        conditions: what the student reads, [B, ...] by the names of the model's arguments.
        stronger: what the teacher reads where it is told more, such as the target image beside the text; empty where
            it reads what the student reads.
        targets: [B, ...] images or latents, float.
        numbers: [B] int64, the rows' numbers in the data set, from which their noise follows.
    """

    conditions: Condition
    stronger: Condition
    targets: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def privileged(self) -> Condition:
        """Return what the teacher reads."""
        return self.stronger or self.conditions

    def to(self, device: torch.device | str) -> ConditionBatch:
        """Return the rows on a device; the numbers stay on the CPU, where the noise is drawn."""
        student, teacher = (
            {n: value.to(device) for n, value in one.items()} for one in (self.conditions, self.stronger)
        )
        return ConditionBatch(student, teacher, self.targets.to(device), self.numbers)

    def repeated(self, times: int) -> ConditionBatch:
        """Return every row `times` times, one after another."""
        return self.rows(torch.arange(len(self)).repeat_interleave(times)) if times > 1 else self

    def rows(self, index: Tensor) -> ConditionBatch:
        """Return the rows at the places `index`, [M] int64."""
        both = self.conditions, self.stronger
        student, teacher = ({name: value[index] for name, value in one.items()} for one in both)
        return ConditionBatch(student, teacher, self.targets[index], self.numbers[index.cpu()])

    def noise(self, step: Step, samples: int = 1) -> Tensor:
        """Return standard normal noise [B * samples, ...] of the targets' dtype and device.

        It is a function of the run's seed, the step, the row's number and the place among the row's samples, whatever
        the batch or rank that the row is in.
        """
        drawn = torch.empty(len(self), samples, *self.targets.shape[1:])
        generator = torch.Generator()
        for row, seed in zip(drawn, step.seeds("noise", self.numbers), strict=True):
            row.normal_(generator=generator.manual_seed(seed))
        return drawn.flatten(0, 1).to(self.targets)


@dataclass(frozen=True)
class Trajectories:
    """States at which a velocity is trained.

    Args:
        states: [B, K, ...] z at each time, without graph.
        times: [B, K] in [0, 1).
        noise: [B, ...] z at time 0.
        batch: B rows; where each row has several trajectories, it stands there as often.
        grid: the K times, where all rows have the same; else nothing. Losses are then logged for each of them.
    """

    states: Tensor
    times: Tensor
    noise: Tensor
    batch: ConditionBatch
    grid: tuple[float, ...] = ()

    @property
    def flat_states(self) -> Tensor:
        """Return the states of all trajectories as one batch, [B * K, ...]."""
        return self.states.flatten(0, 1)

    @property
    def flat_times(self) -> Tensor:
        """Return their times, [B * K]."""
        return self.times.flatten()

    @property
    def flat_lengths(self) -> Tensor:
        """Return how far the step from each state goes in time, [B * K, 1, ...], where all rows have the same times."""
        ends = self.times.new_tensor([*self.grid[1:], 1.0])
        return (ends - self.times).flatten().view(-1, *[1] * (self.noise.dim() - 1))

    def flat(self, condition: Condition) -> Condition:
        """Return a condition of the rows for all of their states, [B * K, ...] by name."""
        count = self.states.shape[1]
        return {name: value.repeat_interleave(count, dim=0) for name, value in condition.items()}

    def privileged(self) -> Trajectories:
        """Return the same states with what a teacher is told as what the student reads."""
        return replace(self, batch=replace(self.batch, conditions=self.batch.privileged))
