"""D-OPSD and flow matching: limits by hand, a loop in float64, and laws of the noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.diffusion.tiny_denoisers import double_models, rows, tiny
from veto_pl.diffusion import DOPSD, Denoiser, Denoisers, FewSteps, FlowMatching, ImageCall, Noised
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import Phases, Sum
from veto_pl.parts.schedules import Linear
from veto_pl.seams import Step

STEP = Step(3, 10, seed=7)
PAPER = (0.0, 0.1, 0.25, 0.5)


def loss_of(objective, models, batch, step=STEP):
    rollouts = {source: source(batch, models, step) for source in objective.sources}
    return objective.loss(rollouts, models, step)


def gradient(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def loop(models, batch, grid, power):
    """The authors' loop: one state after another, a loss at each, the mean over them."""
    z, losses = batch.noise(STEP), []
    for t, end in zip(grid, (*grid[1:], 1.0), strict=True):
        z = z.detach()
        at = z.new_full((len(z),), t)
        student = models.student.velocity(z, at, batch.conditions)
        with torch.no_grad():
            teacher = models.teacher.velocity(z, at, batch.stronger)
        ours, theirs = z + (1 - t) ** power * student, z + (1 - t) ** power * teacher
        losses.append((ours - theirs).square().mean())
        z = z + (end - t) * student
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("weighting", "power"), [("clean", 1), ("velocity", 0)])
@pytest.mark.parametrize("grid", [PAPER, (0.0,), (0.0, 0.3, 0.9)])
def test_states_in_one_batch_are_the_loop_in_value_and_gradient(weighting, power, grid):
    models, batch = double_models()
    output = loss_of(DOPSD(rollout=FewSteps(grid=grid), weighting=weighting), models, batch)
    expected = loop(models, batch, grid, power)
    assert expected > 1e-6
    torch.testing.assert_close(output.terms["loss"].mean(), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        gradient(output.terms["loss"].mean(), models.student), gradient(expected, models.student), rtol=1e-6, atol=1e-12
    )


def test_one_step_is_the_mean_square_at_the_noise():
    models, batch = double_models()
    z, zero = batch.noise(STEP), torch.zeros(3, dtype=torch.float64)
    told = models.student.velocity(z, zero, batch.conditions) - models.teacher.velocity(z, zero, batch.stronger)
    for weighting in ("clean", "velocity"):
        found = loss_of(DOPSD(rollout=FewSteps(grid=(0.0,)), weighting=weighting), models, batch)
        torch.testing.assert_close(found.terms["loss"].mean(), told.square().mean(), rtol=1e-12, atol=0)


def test_the_papers_grid_weighs_its_states_as_in_the_code():
    models, batch = double_models()
    rows = FewSteps()(batch, models, STEP)
    assert rows.times[0].tolist() == list(PAPER)
    each = loop_errors(models, rows)
    found = loss_of(DOPSD(), models, batch).terms["loss"].mean()
    expected = sum(w * e for w, e in zip((1, 0.81, 0.5625, 0.25), each, strict=True)) / 4
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def loop_errors(models, rows):
    for k in range(rows.states.shape[1]):
        z, t = rows.states[:, k], rows.times[:, k]
        student = models.student.velocity(z, t, rows.batch.conditions)
        yield (student - models.teacher.velocity(z, t, rows.batch.stronger)).square().mean()


def test_a_teacher_that_is_the_student_and_is_told_the_same_teaches_nothing():
    models, batch = double_models()
    same = Denoisers(models.student, models.student)
    alike = type(batch)(batch.conditions, {}, batch.targets, batch.numbers)
    output = loss_of(DOPSD(), same, alike)
    assert float(output.terms["loss"].mean()) < 1e-28
    assert gradient(output.terms["loss"].mean(), models.student).abs().max() < 1e-12
    assert float(loss_of(DOPSD(), same, batch).terms["loss"].mean()) > 1e-8, "told more, it teaches"


def test_flow_matching_regresses_image_minus_noise_at_points_between():
    models, batch = double_models()
    objective = FlowMatching(rollout=Noised(samples=2))
    rows = objective.rollout(batch, models, STEP)
    t = rows.times[:, :, None, None]
    image = batch.targets.repeat_interleave(2, dim=0)
    torch.testing.assert_close(rows.states[:, 0], (1 - t) * rows.noise + t * image)
    assert len(set(rows.times.flatten().tolist())) == 6
    predicted = models.student.velocity(rows.states[:, 0], rows.times[:, 0], rows.batch.conditions)
    expected = (predicted - (image - rows.noise)).square().mean()
    found = loss_of(objective, models, batch)
    torch.testing.assert_close(found.terms["loss"].mean(), expected, rtol=1e-9, atol=0)
    told = loss_of(FlowMatching(rollout=Noised(samples=2), reads="stronger"), models, batch)
    assert not torch.isclose(told.terms["loss"].mean(), expected, rtol=1e-3)


def test_both_clocks_are_one_field():
    """A model that predicts noise minus image from sigma, and one that predicts the negative from t."""

    class Plain(torch.nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign, self.seen = torch.nn.Parameter(torch.tensor(sign)), []

        def forward(self, hidden_states, timestep, return_dict):
            self.seen.append(timestep.tolist())
            return (self.sign * hidden_states,)

    sigma, time = Denoiser(Plain(-2.0), ImageCall()), Denoiser(Plain(2.0), ImageCall(clock="time", scale=1.0))
    z, t = torch.ones(2, 1, 2, 2), torch.tensor([0.0, 0.75])
    assert torch.equal(sigma.velocity(z, t, {}), time.velocity(z, t, {}))
    assert (sigma.model.seen, time.model.seen) == ([[1000.0, 250.0]], [[0.0, 0.75]])
    with pytest.raises(ConfigurationError, match="not known how `Plain` is called, only of SD3Transformer2DModel"):
        Denoiser(Plain(1.0))


@pytest.mark.parametrize("weighting", ["clean", "velocity"])
def test_the_losses_of_the_times_have_the_loss_as_their_mean(weighting):
    models, batch = double_models()
    output = loss_of(DOPSD(rollout=FewSteps(grid=PAPER, samples=2), weighting=weighting), models, batch)
    parts = [output.metrics[f"loss_at_t_{t:g}"].mean() for t in PAPER]
    torch.testing.assert_close(torch.stack(parts).mean(), output.terms["loss"].mean(), rtol=1e-12, atol=0)
    assert len({float(part) for part in parts}) == 4
    noised = loss_of(FlowMatching(), models, batch)
    assert not [name for name in noised.metrics if name.startswith("loss_at")], "random times have no grid"


@given(order=st.permutations(range(4)), samples=st.integers(1, 3))
def test_noise_belongs_to_the_row_whatever_its_batch(order, samples):
    batch = rows(4)
    whole = batch.noise(STEP, samples).unflatten(0, (4, samples))
    mixed = batch.rows(torch.tensor(order)).noise(STEP, samples).unflatten(0, (4, samples))
    assert torch.equal(mixed, whole[torch.tensor(order)])
    assert torch.equal(whole[:, :1], batch.noise(STEP, 1).unflatten(0, (4, 1))), "more samples change none"
    assert len(whole.flatten(0, 1).flatten(1).unique(dim=0)) == 4 * samples
    assert not torch.equal(batch.noise(Step(4, 10, seed=7)), batch.noise(STEP))


def test_the_noise_is_standard_normal():
    batch = rows(12).repeated(40)
    numbered = type(batch)(batch.conditions, batch.stronger, batch.targets, torch.arange(480))
    drawn = numbered.noise(STEP)
    count = drawn.numel()
    assert abs(float(drawn.mean())) < 4 / math.sqrt(count)
    assert abs(float(drawn.var()) - 1) < 4 * math.sqrt(2 / count)


def test_a_rollout_has_no_graph_and_restores_the_modes():
    models, batch = Denoisers(tiny().load().train()), rows()
    found = FewSteps(samples=2)(batch, models, STEP)
    assert not found.states.requires_grad
    assert found.states.shape == (6, 4, 1, 4, 4)
    assert torch.equal(found.states[:, 0], found.noise)
    assert all(module.training for module in models.student.modules())
    images = FewSteps(samples=2).sample(models.student, batch, STEP)
    last = models.student.velocity(found.states[:, 3], found.times[:, 3], found.batch.conditions)
    torch.testing.assert_close(images, found.states[:, 3] + 0.5 * last.detach(), rtol=1e-4, atol=1e-5)


def test_sums_weigh_and_phases_switch():
    models, batch = double_models()
    both = Sum(terms={"on": DOPSD(), "off": FlowMatching()}, weights={"off": Linear(1.0, 0.0)})
    output = loss_of(both, models, batch)
    alone = loss_of(FlowMatching(), models, batch).terms["loss"]
    torch.testing.assert_close(output.terms["off/loss"].mean(), 0.7 * alone.mean())
    assert both.active(Step(10, 10)).sources == (FewSteps(),)
    phases = Phases(first=FlowMatching(), then=DOPSD(), switch=0.5)
    assert [type(phases.active(Step(i, 10))) for i in (4, 5)] == [FlowMatching, DOPSD]
