"""Closed forms against autograd, and that a closed form is never used for a function that it does not belong to."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from head_cases import assert_equal_to_dense, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.functional import closed_forms, divergences
from veto_pl.functional.differentiation import belongs, by_autograd, closed_form
from veto_pl.parts.divergences import (
    AlphaDivergence,
    ForwardKL,
    GeneralizedJSD,
    Renyi,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from veto_pl.seams import Divergence

BUILT_IN = [
    *(ForwardKL(), ReverseKL(), GeneralizedJSD(0.3), SkewKL(0.2), SkewReverseKL(0.2), TotalVariation()),
    *(AlphaDivergence(order) for order in (0.0, 1e-9, 0.3, 0.7, 1 - 1e-9, 1.0)),
    *(Renyi(order) for order in (1e-9, 0.3, 0.7, 1 - 1e-9, 1.0)),
]


@pytest.mark.parametrize("divergence", BUILT_IN, ids=lambda d: type(d).__name__)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 10.0]), excluded=st.integers(0, 3))
def test_closed_forms_are_what_autograd_finds(divergence, seed, scale, excluded):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    logits[..., 6 - excluded :] = -math.inf
    student, target = logits.log_softmax(-1)
    assert belongs(divergence, "with_gradient", "__call__")
    assert type(divergence).with_gradient is not Divergence.with_gradient
    value, gradient = divergence.with_gradient(student, target)
    expected = by_autograd(divergence)(student[:, : 6 - excluded], target[:, : 6 - excluded])
    torch.testing.assert_close(value, expected[0], atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(gradient[:, : 6 - excluded], expected[1], atol=1e-12, rtol=1e-9)
    assert not gradient[:, 6 - excluded :].any()


def always(probability, values):
    """Masked sums as an accelerator has them; a CPU looks whether it has to."""
    values = values.masked_fill(probability == 0, 0.0)
    return torch.linalg.vecdot(probability, values), values


@pytest.mark.parametrize("masking", [closed_forms.expectation, always])
@pytest.mark.parametrize("divergence", BUILT_IN, ids=lambda d: type(d).__name__)
def test_an_id_that_the_teacher_alone_excludes(divergence, masking, monkeypatch):
    monkeypatch.setattr(closed_forms, "expectation", masking)
    for gap, dtype in itertools.product([-math.inf, -1e4, -150.0], [torch.float64, torch.float32]):
        check_excluded(divergence, gap, dtype)


def check_excluded(divergence, gap, dtype):
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 6, 8, generator=generator, dtype=dtype)
    target[::2, 1] = target[1::2, 6] = gap
    student, target = student.log_softmax(-1), target.log_softmax(-1)
    value, gradient = divergence.with_gradient(student, target)
    expected = by_autograd(divergence)(student, target)
    finite = expected[0].isfinite()  # KL(p || q) is infinite where q is 0 and p is not
    torch.testing.assert_close(value, expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient[finite], expected[1][finite], atol=1e-6, rtol=1e-5)
    assert finite.all() or gap == -math.inf


@pytest.mark.parametrize("divergence", BUILT_IN, ids=lambda d: type(d).__name__)
def test_a_closed_form_changes_none_of_its_arguments(divergence):
    student, target = torch.randn(2, 4, 6).log_softmax(-1)
    before = student.clone(), target.clone()
    divergence.with_gradient(student, target)
    assert torch.equal(student, before[0])
    assert torch.equal(target, before[1])


@dataclass(frozen=True)
class Twice(ForwardKL):
    def __call__(self, student_logp, target_logp):
        return 2 * super().__call__(student_logp, target_logp)


class Squared:
    def __call__(self, student_logp, target_logp):
        return super().__call__(student_logp, target_logp) ** 2


@dataclass(frozen=True)
class SquaredKL(Squared, ForwardKL):
    """The mixin brings the function, the built-in class the closed form."""


@dataclass(frozen=True)
class Renamed(ForwardKL):
    """Neither."""


@pytest.mark.parametrize("divergence", [Twice(), SquaredKL()], ids=lambda d: type(d).__name__)
def test_another_divergence_does_not_inherit_a_closed_form(divergence):
    assert not belongs(divergence, "with_gradient", "__call__")
    assert_equal_to_dense(inputs(), divergence)


def test_a_subclass_that_changes_nothing_keeps_it():
    renamed = Renamed()
    assert closed_form(renamed) == renamed.with_gradient
    assert_equal_to_dense(inputs(), renamed)


@dataclass
class Unhashable:
    factor: float = 2.0

    def __call__(self, student_logp, target_logp):
        return self.factor * divergences.reverse_kl(student_logp, target_logp)


def test_a_function_need_not_be_hashable():
    assert_equal_to_dense(inputs(), Unhashable())


@pytest.mark.parametrize(
    "closed",
    [ForwardKL(), ReverseKL(), SkewKL(), GeneralizedJSD(), AlphaDivergence(), Renyi()],
    ids=lambda d: type(d).__name__,
)
def test_a_diverged_model_is_not_hidden(closed):
    good, bad = torch.zeros(2, 4).log_softmax(-1), torch.full((2, 4), math.nan)
    for pair in ((bad, good), (good, bad)):
        assert closed.with_gradient(*pair)[0].isnan().all()


def test_a_probability_that_underflows_meets_an_excluded_id():
    student = torch.tensor([[0.0, -200.0, -1.0]]).log_softmax(-1)
    target = torch.tensor([[0.0, -math.inf, -1.5]]).log_softmax(-1)
    value, gradient = ReverseKL().with_gradient(student, target)
    torch.testing.assert_close(value, divergences.reverse_kl(student, target))
    assert gradient.isfinite().all()
