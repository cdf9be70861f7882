"""Published formulas, written down again from their papers or codes, against this package's numbers."""

import math

import pytest
import torch
from torch.nn import functional as F

from veto_pl.functional.advantages import future_mean
from veto_pl.functional.divergences import forward_kl, generalized_jsd, reverse_kl, skew_kl, skew_reverse_kl
from veto_pl.functional.policy import clipped_surrogate
from veto_pl.functional.targets import geometric_bridge
from veto_pl.parts.advantages import FutureLogRatio
from veto_pl.seams import Step
from veto_pl.seams.tokens import TokenGrid


@pytest.fixture
def pair():
    """Student and teacher log-probabilities of 6 tokens over 11 ids, float64."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 6, 11, generator=generator, dtype=torch.float64)
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1)


def test_torch_kl_div(pair):
    """`torch.nn.functional.kl_div(input, target, log_target=True)` is KL(target || input)."""
    student, teacher = pair
    assert torch.allclose(
        forward_kl(student, teacher), F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    )
    assert torch.allclose(
        reverse_kl(student, teacher), F.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    )


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_trl_gkd(pair, beta):
    """TRL (f2cd577): beta teacher and 1 - beta student in the mixture, and the same weights on their KLs to it."""
    student, teacher = (logp.exp() for logp in pair)
    mixture = (1 - beta) * student + beta * teacher
    kl_teacher = (teacher * (teacher / mixture).log()).sum(-1)
    kl_student = (student * (student / mixture).log()).sum(-1)
    assert torch.allclose(generalized_jsd(*pair, beta), beta * kl_teacher + (1 - beta) * kl_student)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_distillm(pair, alpha):
    """DistiLLM (arXiv 2402.03898): cross-entropies against the mixtures, less the entropy of the first argument."""
    student, teacher = (logp.exp() for logp in pair)
    forward = -(teacher * (alpha * teacher + (1 - alpha) * student).log()).sum(-1) + (teacher * teacher.log()).sum(-1)
    reverse = -(student * ((1 - alpha) * teacher + alpha * student).log()).sum(-1) + (student * student.log()).sum(-1)
    assert torch.allclose(skew_kl(*pair, alpha), forward)
    assert torch.allclose(skew_reverse_kl(*pair, alpha), reverse)


def test_minillm_returns():
    """MiniLLM (arXiv 2306.08543): sum of the rewards after this token over how many there are, by a plain loop."""
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    lengths = [7, 4, 1]
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    expected = torch.zeros(3, 7, dtype=torch.float64)
    for row, length in enumerate(lengths):
        for t in range(length - 1):
            expected[row, t] = sum(rewards[row, u] for u in range(t + 1, length)) / (length - t - 1)
    assert torch.allclose(future_mean(rewards, mask), expected)


def test_minillm_rewards_are_scaled_clipped_and_whitened():
    """Defaults of LMOps: divided by 0.5, clipped at 100, zero mean and unit variance."""
    student, teacher = torch.zeros(1, 4), torch.tensor([[0.0, -1.0, 2.0, -500.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    rows = torch.zeros(1, dtype=torch.int64)
    grid = TokenGrid(student, teacher, None, mask, rows, None, Step(0, 1))
    raw = FutureLogRatio(whitened=False)(grid)
    assert raw.tolist() == [[pytest.approx((-2 + 4 - 100) / 3), pytest.approx((4 - 100) / 2), -100, 0]]
    white = FutureLogRatio()(grid)
    assert white.mean().item() == pytest.approx(0, abs=1e-6)
    assert white.std(correction=0).item() == pytest.approx(1, rel=1e-5)


def test_ppo_clips_what_would_go_too_far():
    """Schulman et al. 2017, figure 1: a gain is cut at 1 + epsilon, a loss is not."""
    logp = torch.tensor([math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5)], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = clipped_surrogate(logp, torch.zeros(4), advantage, 0.2)
    assert loss.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient.tolist() == pytest.approx([0, 1.5, -0.5, 0])


@pytest.mark.parametrize("beta", [0.3, 0.8, 1.2])
def test_vetos_target_as_its_authors_blend_it(pair, beta):
    """jjun-0824/Veto at 0ff04a0: teacher + beta * student in log-space, renormalised by log-sum-exp."""
    student, teacher = pair
    blended = teacher + beta * student
    assert torch.allclose(geometric_bridge(teacher, student, beta), blended - blended.logsumexp(-1, keepdim=True))
    product = teacher.exp() * student.exp() ** beta
    assert torch.allclose(geometric_bridge(teacher, student, beta).exp(), product / product.sum(-1, keepdim=True))
