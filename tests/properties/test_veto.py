"""What the paper proves about Veto, on numbers: gradients, policy-gradient form, fixed point, sharpening."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.diagnostics import entropy, sharpness
from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.functional.targets import geometric_bridge
from veto_pl.objectives import Distill, Veto
from veto_pl.parts.divergences import ForwardKL, ReverseKL
from veto_pl.parts.schedules import Linear
from veto_pl.parts.targets import GeometricBridge
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.seams import Step
from veto_pl.testing import oracles
from veto_pl.testing.strategies import SMOOTH, logits_of_kind, logits_pairs
from veto_pl.testing.tiny import prompt_batch, tiny_models

betas = st.floats(0.01, 3.0)
ordinary = logits_pairs(kinds=["ordinary", "ties"], max_vocabulary=12)


def close(value, expected, tolerance=1e-9):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def logit_gradient(divergence, pair, beta, *, attached=False):
    """p, Q and the gradient of the summed divergence to the bridge with respect to the student's logits."""
    logits = pair[0].clone().requires_grad_()
    student = logits.log_softmax(-1)
    target = geometric_bridge(pair[1].log_softmax(-1), student if attached else student.detach(), beta)
    (gradient,) = torch.autograd.grad(divergence(student, target).sum(), logits)
    return student.detach().exp(), target.detach().exp(), gradient


@given(pair=logits_pairs(max_rows=2, max_vocabulary=8), beta=betas)
def test_bridge_against_the_oracle(pair, beta):
    student, teacher = map(oracles.distributions, pair)
    expected = [oracles.geometric_bridge(t, s, beta) for t, s in zip(teacher, student, strict=True)]
    value = geometric_bridge(pair[1].log_softmax(-1), pair[0].log_softmax(-1), beta)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-7)


@given(pair=logits_pairs())
def test_without_veto_the_target_is_the_teacher_to_the_bit(pair):
    teacher = pair[1].log_softmax(-1)
    assert geometric_bridge(teacher, pair[0].log_softmax(-1), 0.0) is teacher


@given(pair=logits_pairs(kinds=["ordinary", "excluded"]), first=betas, second=betas)
def test_bridges_compose(pair, first, second):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    twice = geometric_bridge(geometric_bridge(teacher, student, first), student, second)
    close(twice, geometric_bridge(teacher, student, first + second))


@given(pair=logits_pairs(kinds=SMOOTH), beta=betas)
def test_what_only_one_model_excludes_is_vetoed(pair, beta):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    student, teacher = student.clone(), teacher.clone()
    student[:, 0] = -math.inf
    bridge = geometric_bridge(teacher, student, beta)
    assert bridge[:, 0].isneginf().all()
    close(bridge.exp().sum(-1), torch.ones(len(bridge), dtype=torch.float64))


@given(pair=logits_pairs(kinds=SMOOTH), weights=st.tuples(betas, betas).map(sorted))
def test_more_beta_agrees_more_with_the_student(pair, weights):
    """The expected log-probability of the student under Q grows with beta: its derivative is a variance."""
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    less, more = ((geometric_bridge(teacher, student, b).exp() * student).sum(-1) for b in weights)
    assert (less <= more + 1e-9).all()


@given(pair=logits_pairs(kinds=["ordinary"]))
def test_much_beta_leaves_the_students_mode(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    student = student.clone()
    student.scatter_add_(-1, student.argmax(-1, keepdim=True), torch.ones(len(student), 1, dtype=torch.float64))
    mode = geometric_bridge(teacher, student, 1e3).argmax(-1)
    assert torch.equal(mode, student.argmax(-1))


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_strengths_that_mean_nothing_are_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        geometric_bridge(torch.zeros(1, 1), torch.zeros(1, 1), beta)


def test_a_negative_strength_is_refused_by_the_settings():
    with pytest.raises(ConfigurationError, match=r"-0\.1"):
        Veto(beta=-0.1)


@given(pair=logits_pairs(), beta=st.just(0.0) | betas)
def test_forward_gradient_is_student_minus_target(pair, beta):
    p, q, gradient = logit_gradient(forward_kl, pair, beta)
    close(gradient, p - q)


@given(pair=ordinary, beta=st.just(0.0) | betas)
def test_reverse_gradient_is_the_centred_log_ratio(pair, beta):
    p, q, gradient = logit_gradient(reverse_kl, pair, beta)
    ratio = (p / q).log()
    close(gradient, p * (ratio - (p * ratio).sum(-1, keepdim=True)))


@given(pair=logits_pairs(kinds=["ordinary", "ties"], max_rows=1, max_vocabulary=6), beta=betas)
def test_reverse_gradient_is_a_policy_gradient(pair, beta):
    """The expectation over y ~ p of (log p(y) - log Q(y)) times the gradient of log p(y), one y after another."""
    p, q, gradient = logit_gradient(reverse_kl, pair, beta)
    expected = torch.zeros_like(gradient)
    for y in range(p.shape[-1]):
        logits = pair[0].clone().requires_grad_()
        (score,) = torch.autograd.grad(logits.log_softmax(-1)[0, y], logits)
        expected += p[0, y] * (p[0, y].log() - q[0, y].log()) * score
    close(gradient, expected)


@given(pair=ordinary, beta=betas)
def test_a_forward_target_that_is_not_held_fixed_adds_a_term(pair, beta):
    p, q, held = logit_gradient(forward_kl, pair, beta)
    _, _, attached = logit_gradient(forward_kl, pair, beta, attached=True)
    ratio = (q / p).log()
    close(attached - held, beta * q * (ratio - (q * ratio).sum(-1, keepdim=True)))


@given(pair=ordinary, beta=betas)
def test_a_reverse_target_that_is_not_held_fixed_adds_a_term(pair, beta):
    p, q, held = logit_gradient(reverse_kl, pair, beta)
    _, _, attached = logit_gradient(reverse_kl, pair, beta, attached=True)
    close(attached - held, beta * (q - p))


@pytest.mark.parametrize(("divergence", "rate", "steps"), [(forward_kl, 2.0, 1500), (reverse_kl, 2.0, 1500)])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_training_ends_at_the_sharpened_teacher(divergence, rate, steps, beta):
    # Moderate logits: gradient descent crawls where a probability is small, and it would end there all the same.
    logits, teacher = (0.3 * drawn for drawn in logits_of_kind("ordinary", 3, 5, 7))
    for _ in range(steps):
        _, _, gradient = logit_gradient(divergence, (logits, teacher), beta)
        logits = logits - rate * gradient
    close(logits.softmax(-1), (teacher / (1 - beta)).softmax(-1), 1e-5)


@given(pair=logits_pairs(kinds=SMOOTH), beta=st.floats(0.05, 0.9))
def test_the_sharpened_teacher_is_its_own_target(pair, beta):
    teacher = pair[1].log_softmax(-1)
    fixed_point = (teacher / (1 - beta)).log_softmax(-1)
    close(geometric_bridge(teacher, fixed_point, beta), fixed_point)
    assert (entropy(fixed_point) <= entropy(teacher) + 1e-9).all()
    assert (sharpness(fixed_point, teacher) >= -1e-9).all()


@given(pair=logits_pairs(kinds=SMOOTH), betas=st.tuples(st.floats(0, 3), st.floats(0, 3)).map(sorted))
def test_a_student_that_is_the_teacher_gets_a_sharper_target_with_more_beta(pair, betas):
    teacher = pair[1].log_softmax(-1)
    less, more = (sharpness(geometric_bridge(teacher, teacher, beta), teacher) for beta in betas)
    assert (less <= more + 1e-9).all()


@given(pair=logits_pairs(kinds=SMOOTH), beta=betas)
def test_the_veto_shrinks_the_pull_to_what_the_student_hardly_knows(pair, beta):
    """On an id that the student finds less likely than any other, Q / T is smaller than on every other id."""
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    change = geometric_bridge(teacher, student, beta) - teacher
    assert torch.equal(change.argmin(-1), student.argmin(-1))


@settings(max_examples=10)
@given(index=st.integers(0, 10))
def test_a_schedule_reaches_the_target(index):
    student, teacher = (logits.log_softmax(-1) for logits in logits_of_kind("ordinary", 2, 5, 1))
    target = GeometricBridge(Linear(0.8, 0.0))(teacher, student, Step(index, 10))
    close(target, geometric_bridge(teacher, student, 0.8 * (1 - index / 10)))


def update(objective, models, sequences, step):
    rollouts = dict.fromkeys(objective.sources, sequences)
    stat = objective.loss(rollouts, models, step).terms["loss"]
    return stat.total, torch.autograd.grad(stat.total, list(models.student.parameters()))


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL()], ids=["forward", "reverse"])
@pytest.mark.parametrize(("beta", "index"), [(0.0, 3), (Linear(0.8, 0.0), 10)], ids=["constant", "decayed"])
def test_without_veto_it_is_plain_distillation_to_the_bit(divergence, beta, index):
    models = tiny_models()
    prompts = prompt_batch(models, ["abc>", "d>", "efgh>"])
    rollout = FromStudent(Sampling(temperature=0.5, top_p=0.9, max_new_tokens=6))
    step = Step(index, 10)
    sequences = rollout(prompts, models, step)
    veto = Veto(beta=beta, divergence=divergence, rollout=rollout)
    plain = Distill(divergence=divergence, rollout=rollout)
    (ours, gradients), (theirs, expected) = (update(o, models, sequences, step) for o in (veto, plain))
    assert torch.equal(ours, theirs)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))
    early = update(dataclasses.replace(veto, beta=0.8), models, sequences, step)[0]
    assert not torch.equal(early, theirs)


def test_the_objective_holds_its_target_fixed():
    """The gradient of the loss is that of the closed form p - Q at the logits, through the model."""
    models = tiny_models()
    sequences = FromDataset()(prompt_batch(models, ["abc>", "d>"], ["cba", "dd"]), models, Step(0, 1))
    veto = Veto(beta=0.8, rollout=FromDataset())
    _, gradients = update(veto, models, sequences, Step(0, 1))
    logits = models.student(sequences, lambda hidden, model: model.project(hidden)[0])
    with torch.no_grad():
        teacher = models.teacher(sequences, lambda hidden, model: model.project(hidden)[0]).softmax(-1)
        p = logits.softmax(-1)
        q = teacher * p**0.8
        signal = p - q / q.sum(-1, keepdim=True)
    expected = torch.autograd.grad((logits * signal).sum(), list(models.student.parameters()))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
