"""The policy-gradient pieces against a loop over tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.functional.policy import clipped_surrogate, importance_weight

logps = st.floats(-8, 0)
tokens = st.lists(st.tuples(logps, logps, st.floats(-3, 3)), min_size=1, max_size=8)
clips = st.floats(0.05, 0.5)


def columns(rows):
    return (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))


def surrogate(logp, old, advantage, clip):
    """Case by case: a gain counts up to 1 + epsilon, a loss down to 1 - epsilon."""
    ratio = math.exp(logp - old)
    if advantage >= 0:
        return -min(ratio, 1 + clip) * advantage
    return -max(ratio, 1 - clip) * advantage


@given(rows=tokens, clip=clips)
def test_the_surrogate_against_a_loop(rows, clip):
    expected = torch.tensor([surrogate(*row, clip) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(clipped_surrogate(*columns(rows), clip), expected, rtol=1e-9, atol=1e-9)


@given(rows=tokens, clip=clips)
def test_the_surrogate_never_promises_more_than_the_ratio(rows, clip):
    logp, old, advantage = columns(rows)
    assert (clipped_surrogate(logp, old, advantage, clip) >= -(logp - old).exp() * advantage - 1e-9).all()


@given(rows=tokens, clip=clips)
def test_on_policy_its_gradient_is_that_of_the_weighted_likelihood(rows, clip):
    logp, _, advantage = columns(rows)
    logp.requires_grad_()
    loss = clipped_surrogate(logp, logp.detach(), advantage, clip)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(loss.detach(), -advantage)
    torch.testing.assert_close(gradient, -advantage)


@given(rows=tokens, clip=clips)
def test_no_gradient_pushes_further_what_has_gone_too_far(rows, clip):
    logp, old, advantage = columns(rows)
    logp.requires_grad_()
    (gradient,) = torch.autograd.grad(clipped_surrogate(logp, old, advantage, clip).sum(), logp)
    ratio = (logp.detach() - old).exp()
    too_far = ((ratio > 1 + clip) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))
    assert (gradient[too_far] == 0).all()
    torch.testing.assert_close(gradient[~too_far], (-ratio * advantage)[~too_far], rtol=1e-9, atol=1e-9)


@given(rows=tokens, maximum=st.floats(0.1, 10))
def test_importance_weights_against_a_loop(rows, maximum):
    logp, sampler, _ = columns(rows)
    expected = torch.tensor([min(math.exp(a - b), maximum) for a, b, _ in rows], dtype=torch.float64)
    torch.testing.assert_close(importance_weight(logp, sampler, maximum), expected, rtol=1e-6, atol=1e-9)


def test_importance_weights_correct_the_expectation():
    """Untruncated, the mean over the sampler of weight times value is the mean over the policy."""
    policy, sampler, value = torch.rand(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy, sampler = policy.log_softmax(-1), sampler.log_softmax(-1)
    weighted = (sampler.exp() * importance_weight(policy, sampler, 1e9) * value).sum()
    torch.testing.assert_close(weighted, (policy.exp() * value).sum())


@pytest.mark.parametrize("gap", [200.0, 1e4])
def test_importance_weights_do_not_overflow(gap):
    logp = torch.zeros(1, requires_grad=True)
    weight = importance_weight(logp, torch.tensor([-gap]), 10.0)
    (gradient,) = torch.autograd.grad(weight.sum(), logp)
    assert weight.item() == pytest.approx(10.0)
    assert gradient == 0
