"""The laws of denoising objectives can fail: each is broken by somebody, who is reported."""

from dataclasses import dataclass, replace

import pytest
import torch

from veto_pl.diffusion import DOPSD, FewSteps
from veto_pl.functional.stat import Stat
from veto_pl.testing import test_denoising as laws


@dataclass(frozen=True, kw_only=True)
class _Mean(DOPSD):
    """Divides by itself: the parts of a split batch do not add up."""

    def loss(self, rollouts, models, step):
        output = super().loss(rollouts, models, step)
        one = output.terms["loss"]
        return replace(output, terms={"loss": Stat(one.total / one.weight, torch.ones_like(one.weight))})


@dataclass(frozen=True, kw_only=True)
class _Noisy(DOPSD):
    """Reads the teacher with its dropout."""

    def loss(self, rollouts, models, step):
        rows = rollouts[self.rollout]
        target = models.teacher.velocity(rows.flat_states, rows.flat_times, rows.flat(rows.batch.privileged))
        from veto_pl.diffusion import compared

        return compared(rows, models, target)


@dataclass(frozen=True)
class _Neighbours(FewSteps):
    """Takes its noise by the place in the batch."""

    def __call__(self, batch, models, step):
        return super().__call__(replace(batch, numbers=torch.arange(len(batch))), models, step)


def test_what_is_right_passes():
    laws.test_a_split_batch_has_the_loss_and_gradient_of_the_whole(DOPSD(), laws.SPLITS[1])
    laws.test_a_loss_trains_the_student_alone_and_is_the_same_each_time(DOPSD())
    laws.test_states_are_without_graph_at_times_from_noise_to_image(DOPSD())


def test_what_is_wrong_is_found():
    with pytest.raises(AssertionError):
        laws.test_a_split_batch_has_the_loss_and_gradient_of_the_whole(_Mean(), laws.SPLITS[1])
    with pytest.raises(AssertionError):
        laws.test_a_loss_trains_the_student_alone_and_is_the_same_each_time(_Noisy())
    with pytest.raises(AssertionError):
        laws.test_states_are_without_graph_at_times_from_noise_to_image(DOPSD(rollout=_Neighbours()))
    with pytest.raises(AssertionError):
        laws.test_a_split_batch_has_the_loss_and_gradient_of_the_whole(DOPSD(rollout=_Neighbours()), laws.SPLITS[1])
