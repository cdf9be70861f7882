"""Every installed objective of denoising students on a tiny velocity field, and every source of its states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from veto_pl.diffusion import ConditionBatch, Denoiser, Denoisers, DenoisingObjective, ModelCall, Trajectories
from veto_pl.diffusion.few_steps import TrajectorySource
from veto_pl.diffusion.trajectories import Condition
from veto_pl.functional.stat import Stat
from veto_pl.plugins import load_plugins
from veto_pl.seams import Step
from veto_pl.testing.examples import installed

load_plugins()

STEP = Step(2, 10, seed=4)
ROWS, CHANNELS, SIDE = 4, 2, 3
SPLITS = [[[0], [1], [2], [3]], [[3, 1, 0], [2]]]


class FieldCall(ModelCall):
    """Asks a `Field`."""

    def __call__(self, model: nn.Module, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return its output."""
        found: Tensor = model(z, t, condition["told"])
        return found


class Field(nn.Module):
    """A velocity field of two layers, with dropout, which a teacher must not use."""

    def __init__(self) -> None:
        super().__init__()
        size = CHANNELS * SIDE**2
        self.layers = nn.Sequential(nn.Linear(size + 3, 8), nn.Tanh(), nn.Linear(8, size))
        self.dropout = nn.Dropout(0.5)

    def forward(self, z: Tensor, t: Tensor, told: Tensor) -> Tensor:
        """Return [B, C, H, W] of states, times [B] and conditions [B, 2]."""
        found: Tensor = self.dropout(self.layers(torch.cat([z.flatten(1), t[:, None], told], dim=1)))
        return found.view_as(z)


def name(instance: object) -> str:
    """Return the name of a test case: that of its class."""
    return type(instance).__name__


def models() -> Denoisers:
    """Return a student without dropout, and a teacher with it, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = (Denoiser(Field().double(), FieldCall()).train() for _ in range(2))
    student.model.dropout.p = 0.0
    return Denoisers(student, teacher.requires_grad_(False))


def rows() -> ConditionBatch:
    """Return rows of which the teacher is told more."""
    drawn = torch.Generator().manual_seed(1)
    made = [torch.randn(ROWS, 2, generator=drawn, dtype=torch.float64) for _ in range(2)]
    targets = torch.randn(ROWS, CHANNELS, SIDE, SIDE, generator=drawn, dtype=torch.float64)
    return ConditionBatch({"told": made[0]}, {"told": made[1]}, targets, torch.arange(ROWS))


def rolled(objective: DenoisingObjective, batch: ConditionBatch, of: Denoisers) -> dict[TrajectorySource, Trajectories]:
    """Return what each source of an objective produces."""
    return {source: source(batch, of, STEP) for source in objective.sources}


def terms(objective: DenoisingObjective, batch: ConditionBatch, of: Denoisers) -> dict[str, Stat]:
    """Return the undivided loss terms of a batch."""
    return dict(objective.loss(rolled(objective, batch, of), of, STEP).terms)


def _gradient(total: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])


each = pytest.mark.parametrize("objective", installed(DenoisingObjective), ids=name)


@each
@pytest.mark.parametrize("split", SPLITS, ids=["rows", "uneven"])
def test_a_split_batch_has_the_loss_and_gradient_of_the_whole(
    objective: DenoisingObjective, split: list[list[int]]
) -> None:
    """Check that terms are sums, with weights that add up, and that no row depends on its neighbours."""
    of, batch = models(), rows()
    whole = terms(objective, batch, of)
    parts = [terms(objective, batch.rows(torch.tensor(part)), of) for part in split]
    for term, expected in whole.items():
        total = torch.stack([part[term].total for part in parts]).sum()
        weight = torch.stack([part[term].weight for part in parts]).sum()
        torch.testing.assert_close(weight, expected.weight)
        torch.testing.assert_close(total, expected.total, rtol=1e-9, atol=1e-12)
        ours, theirs = _gradient(total, of.student), _gradient(expected.total, of.student)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@each
def test_a_loss_trains_the_student_alone_and_is_the_same_each_time(objective: DenoisingObjective) -> None:
    """Check that the student has a gradient, a teacher is read without dropout, and modes are left as they were."""
    of, batch = models(), rows()
    first, second = terms(objective, batch, of), terms(objective, batch, of)
    for term, loss in first.items():
        assert torch.equal(loss.total, second[term].total)
        assert _gradient(loss.total, of.student).abs().max() > 0
    assert of.student.training
    assert of.required_teacher().training


@each
def test_states_are_without_graph_at_times_from_noise_to_image(objective: DenoisingObjective) -> None:
    """Check the shapes and bounds that a rollout promises, and that its states belong to their rows."""
    of, batch = models(), rows()
    reordered = batch.rows(torch.tensor([2, 0, 3, 1]))
    for source, found in rolled(objective, batch, of).items():
        assert not found.states.requires_grad
        assert found.states.shape[:2] == found.times.shape
        assert (found.times >= 0).all()
        assert (found.times < 1).all()
        for place, t in enumerate(found.grid):
            assert (found.times[:, place] == t).all()
        other = source(reordered, of, STEP)
        for number in range(ROWS):
            ours, theirs = (one.states[one.batch.numbers == number] for one in (found, other))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
