"""Every installed part of a loss, checked against what its seam and its class promise."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from veto_pl.plugins import load_plugins
from veto_pl.seams import (
    Advantage,
    Divergence,
    Law,
    Schedule,
    Step,
    Support,
    Target,
    TokenWeighting,
)
from veto_pl.seams.tokens import TokenGrid, TokenRows
from veto_pl.testing.examples import installed
from veto_pl.testing.strategies import SMOOTH, logits_of_kind, logits_pairs, ragged_grids

load_plugins()

STEP = Step(3, 10)
Pair = tuple[Tensor, Tensor]

VALUES = installed(Divergence, Support, Target, TokenWeighting)

quick = settings(deadline=None, derandomize=True, max_examples=20)


def name(instance: object) -> str:
    """Return the name of a test case: that of its class."""
    return type(instance).__name__


def promising(law: Law, *seams: type) -> list[Any]:
    """Return the installed instances whose class declares the law."""
    return [instance for instance in installed(*seams) if law in instance.laws]


def each(instances: list[Any]) -> pytest.MarkDecorator:
    """Return the decorator that makes one test of every instance."""
    return pytest.mark.parametrize("instance", instances, ids=name)


def values(instance: Any, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, ...]:
    """Return the results of an instance, of any seam, on the normalised rows of two models."""
    return _called(instance, student_logits.log_softmax(-1), teacher_logits.log_softmax(-1))


def _called(instance: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    if isinstance(instance, Support):
        return instance(student, teacher)
    if isinstance(instance, Target):
        return (instance(teacher, student, STEP),)
    if isinstance(instance, Divergence):
        return (instance(student, teacher),)
    index = torch.arange(len(student))
    return (instance(TokenRows(student, teacher, index % student.shape[-1], index, STEP)),)


def scored(instance: Advantage, shape: torch.Size, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the scores that an advantage reads, [B, S] each, of random distributions."""
    student, teacher = torch.randn(2, shape.numel(), 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    index = torch.arange(len(student))
    scores = instance.scores(TokenRows(student, teacher, index % 4, index // shape[1], STEP))
    return {name: value.view(shape) for name, value in scores.items()}


def _close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, check_dtype=False)


@each(promising(Law.ZERO_AT_EQUALITY, Divergence))
@given(pair=logits_pairs())
@quick
def test_zero_at_equality(instance: Divergence, pair: Pair) -> None:
    """Check that the divergence of two equal distributions is 0."""
    for logits in pair:
        (value,) = values(instance, logits, logits)
        _close(value, torch.zeros_like(value))


@each(promising(Law.NON_NEGATIVE, Divergence))
@given(pair=logits_pairs())
@quick
def test_non_negative(instance: Divergence, pair: Pair) -> None:
    """Check that a divergence is never below 0, up to rounding."""
    (value,) = values(instance, *pair)
    assert value.min() >= -1e-9


@each(promising(Law.PERMUTATION_INVARIANT, Divergence))
@given(pair=logits_pairs(), seed=st.integers(0, 1000))
@quick
def test_divergences_do_not_know_the_order_of_the_vocabulary(instance: Divergence, pair: Pair, seed: int) -> None:
    """Check that the same permutation of both vocabularies does not change a divergence."""
    order = torch.randperm(pair[0].shape[-1], generator=torch.Generator().manual_seed(seed))
    _close(values(instance, *(logits[:, order] for logits in pair))[0], values(instance, *pair)[0])


@each(promising(Law.PERMUTATION_INVARIANT, Target))
@given(pair=logits_pairs(), seed=st.integers(0, 1000))
@quick
def test_targets_follow_the_order_of_the_vocabulary(instance: Target, pair: Pair, seed: int) -> None:
    """Check that a permutation of the ids permutes the target alike."""
    order = torch.randperm(pair[0].shape[-1], generator=torch.Generator().manual_seed(seed))
    _close(values(instance, *(logits[:, order] for logits in pair))[0], values(instance, *pair)[0][:, order])


@each(installed(Support, Target, TokenWeighting))
@given(pair=logits_pairs())
@quick
def test_what_is_neutral_gives_back_what_it_is_given(instance: Any, pair: Pair) -> None:
    """Check that a neutral part returns its input, since objectives leave such a part out of closed forms."""
    if instance.is_neutral:
        student, teacher = (logits.log_softmax(-1) for logits in pair)
        same = {Support: (student, teacher), Target: (teacher,), TokenWeighting: (torch.ones(len(student)),)}
        expected = next(given for seam, given in same.items() if isinstance(instance, seam))
        for found, one in zip(values(instance, *pair), expected, strict=True):
            _close(found, one)


@each(installed(Support))
@given(pair=logits_pairs())
@quick
def test_a_support_keeps_as_many_ids_as_it_says(instance: Support, pair: Pair) -> None:
    """Check that a support keeps at most as many ids as it is asked to, with one outcome for all others."""
    most = pair[0].shape[-1] - 1
    narrow = instance.keeping(most)
    kept = narrow.kept_ids()
    if kept is not None:
        assert 0 < kept <= most, f"`keeping({most})` must keep no more than that, got {kept}."
        assert {value.shape[-1] for value in values(narrow, *pair)} <= {kept, kept + 1}


@each(installed(Target))
@given(pair=logits_pairs(kinds=["ordinary"]))
@quick
def test_targets_are_made_of_the_teacher(instance: Target, pair: Pair) -> None:
    """Check that another teacher gives another target: with its arguments exchanged, a target reads the student."""
    student, teacher = pair
    moved = teacher + torch.arange(teacher.shape[-1])
    (one,), (other,) = values(instance, student, teacher), values(instance, student, moved)
    assert not torch.equal(one, other), (
        "The target is the same for another teacher. Its arguments are (teacher_logp, student_logp, step)."
    )


@each([*promising(Law.NORMALISED, Target), *installed(Support)])
@given(pair=logits_pairs())
@quick
def test_distributions_are_normalised(instance: Target | Support, pair: Pair) -> None:
    """Check that the probabilities of targets, and of both sides of a support, sum to 1."""
    for logp in values(instance, *pair):
        _close(logp.exp().sum(-1), torch.ones(len(logp)))


@each(VALUES)
@given(pair=logits_pairs(kinds=[*SMOOTH, "excluded"]), shift=st.floats(-50, 50))
@quick
def test_a_shift_of_the_logits_changes_nothing(instance: Any, pair: Pair, shift: float) -> None:
    """Check that adding a constant to the logits changes nothing."""
    for one, other in zip(values(instance, pair[0] + shift, pair[1] - shift), values(instance, *pair), strict=True):
        _close(one, other)


@each(VALUES)
@given(pair=logits_pairs())
@quick
def test_each_row_stands_alone(instance: Any, pair: Pair) -> None:
    """Check that rows one at a time give what all rows give together, and that no rows give no values."""
    whole = values(instance, *pair)
    pieces = [values(instance, *(logits[i : i + 1] for logits in pair)) for i in range(len(pair[0]))]
    pieces.append(values(instance, *(logits[:0] for logits in pair)))
    for position, value in enumerate(whole):
        assert len(value) == len(pair[0])
        _close(torch.cat([piece[position] for piece in pieces]), value)


@each(VALUES)
@given(pair=logits_pairs())
@quick
def test_arguments_are_left_alone(instance: Any, pair: Pair) -> None:
    """Check that the arguments are not changed in place."""
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    copies = student.clone(), teacher.clone()
    _called(instance, student, teacher)
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])


@each(VALUES)
@given(pair=logits_pairs(), dtype=st.sampled_from([torch.float32, torch.float64]))
@quick
def test_values_and_gradients_are_finite(instance: Any, pair: Pair, dtype: torch.dtype) -> None:
    """Check that values and gradients are finite, even for logits of 10,000 and ids that both models exclude."""
    student, teacher = (logits.to(dtype).requires_grad_() for logits in pair)
    results = values(instance, student, teacher)
    assert all(result.dtype == dtype for result in results)
    if isinstance(instance, Target | Support):
        assert all((result <= 1e-3).all() for result in results), "log-probabilities, and no NaN"
        results = tuple(result.exp() * torch.arange(result.shape[-1]) for result in results)
    assert all(result.isfinite().all() for result in results)
    total = torch.stack([result.sum() for result in results]).sum()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [logits.grad for logits in (student, teacher) if logits.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)


@each(VALUES)
@given(pair=logits_pairs(kinds=["ordinary", "peaked", "extreme"]))
@quick
def test_single_precision_is_near_double_precision(instance: Any, pair: Pair) -> None:
    """Check that the error in float32 is no larger than that of the log-probabilities themselves."""
    tolerance = 1e-6 * max(float(logits.abs().max()) for logits in pair) + 1e-5
    single = values(instance, *(logits.float() for logits in pair))
    for one, other in zip(single, values(instance, *pair), strict=True):
        _close(one, other, tolerance)


@each([x for x in VALUES if not isinstance(x, TokenWeighting)])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_the_values(instance: Any, seed: int) -> None:
    """Check the gradients of automatic differentiation against finite differences."""
    pair = tuple(logits.requires_grad_() for logits in logits_of_kind("ordinary", 2, 4, seed))
    assert torch.autograd.gradcheck(lambda student, teacher: values(instance, student, teacher), pair)


@each(installed(Advantage))
@given(grid=ragged_grids(), seed=st.integers(0, 1000))
@quick
def test_advantages_ignore_what_is_masked(instance: Advantage, grid: Pair, seed: int) -> None:
    """Check that credit is finite, has one number per token, and does not depend on masked positions."""
    student, mask = grid
    generator = torch.Generator().manual_seed(seed)
    teacher, garbage = torch.randn(2, *mask.shape, generator=generator, dtype=torch.float64)
    rewards = torch.randint(2, (len(mask),), generator=generator).double()
    rows = torch.arange(len(mask)) // 2
    scores = scored(instance, mask.shape, generator)
    others = {"reference_logp": teacher.flip(1), "contrast_logp": torch.stack([teacher.flip(1), teacher / 2])}
    clean = TokenGrid(student, teacher, teacher, mask, rows, rewards, STEP, scores=scores, **others)
    dirty = dataclasses.replace(clean, student_logp=torch.where(mask, student, garbage * 100))
    credit = instance(clean)
    assert credit.shape == mask.shape
    assert credit[mask].isfinite().all()
    assert torch.equal(credit[mask], instance(dirty)[mask])


@each(installed(Schedule))
@given(total=st.integers(1, 1000), step=st.integers(0, 1010))
@quick
def test_schedules_are_finite_functions_of_the_step(instance: Schedule, total: int, step: int) -> None:
    """Check that a schedule is a finite number at every step, always the same, and constant after the run."""
    assert isinstance(instance(step, total), float)
    assert abs(instance(step, total)) < float("inf")
    assert instance(step, total) == instance(step, total)
    assert instance(total, total) == instance(total + step, total)
