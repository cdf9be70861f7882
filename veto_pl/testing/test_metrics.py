"""Every installed metric: a name, a finite number, and the same one however completions are batched."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from veto_pl.metrics import CompletionMetric, MetricFamily, TokenMetric
from veto_pl.metrics.generations import Generations
from veto_pl.plugins import load_plugins
from veto_pl.seams import Example
from veto_pl.testing.examples import installed
from veto_pl.testing.strategies import KINDS, logits_of_kind

load_plugins()

SAMPLES = 4
"""Completions of each prompt."""
TEXTS = ("one two two", "one", "", "three one", "12", "13", "12", "twelve", "{}", "[1]", "no", "a a a a a a", *"abcd")
PERHAPS = ("logp", "turns", "failed_turns", "late_turns")
"""Fields of `Generations` that not all evaluations have."""
FAMILIES = installed(MetricFamily)
MEMBERS = [member for family in FAMILIES for member in family.members(SAMPLES)]
OF_COMPLETIONS = [*installed(CompletionMetric), *(x for x in MEMBERS if isinstance(x, CompletionMetric))]
OF_TOKENS = [*installed(TokenMetric), *(x for x in MEMBERS if isinstance(x, TokenMetric))]


def name(instance: object) -> str:
    """Return the name of a test case: that of its class."""
    return type(instance).__name__


each = pytest.mark.parametrize("metric", [*OF_COMPLETIONS, *OF_TOKENS], ids=name)
of_tokens = pytest.mark.parametrize("metric", OF_TOKENS, ids=name)


def generations() -> Generations:
    """Return four prompts with four completions each; some are correct or empty, and some rows have references."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(TEXTS) // SAMPLES, SAMPLES)
    references = (("one two", ("two",)), ("12", ()), (None, ()), ("d", ("a", "b")))
    return Generations(
        texts=list(TEXTS),
        tokens=[[ord(letter) % 20 for letter in text] + [1] * (place % 2) for place, text in enumerate(TEXTS)],
        rewards=torch.randint(3, shape, generator=generator) / 2,
        finished=torch.arange(len(TEXTS)).reshape(shape) % 2 == 1,
        examples=tuple(Example(f"{i}?", text, alternatives=more) for i, (text, more) in enumerate(references)),
        logp=-5 * torch.rand(shape, generator=generator),
        turns=torch.arange(1, len(TEXTS) + 1).reshape(shape) % 5 + 1,
        failed_turns=torch.arange(len(TEXTS)).reshape(shape) % 2,
        late_turns=torch.arange(len(TEXTS)).reshape(shape) % 3 // 2,
    )


def of_prompts(given: Generations, prompts: Iterable[int]) -> Generations:
    """Return the completions of some prompts."""
    chosen = list(prompts)
    places = [prompt * SAMPLES + k for prompt in chosen for k in range(SAMPLES)]
    return replace(
        given,
        texts=[given.texts[place] for place in places],
        tokens=[given.tokens[place] for place in places],
        rewards=given.rewards[chosen],
        finished=given.finished[chosen],
        examples=tuple(given.examples[prompt] for prompt in chosen),
        **{field: None if (of := getattr(given, field)) is None else of[chosen] for field in PERHAPS},
    )


def of_kind(kind: str) -> tuple[Tensor, Tensor]:
    """Return float32 log-probabilities of student and teacher, [8, 20] each."""
    student, teacher = (logits.float().log_softmax(-1) for logits in logits_of_kind(kind, 8, 20, 0))
    return student, teacher


Given = Generations | tuple[Tensor, Tensor]


def batches(metric: CompletionMetric | TokenMetric) -> list[Given]:
    """Return four batches that a metric is updated with, together what `whole` returns."""
    if isinstance(metric, CompletionMetric):
        return [of_prompts(generations(), [prompt]) for prompt in range(4)]
    student, teacher = of_kind("ordinary")
    return list(zip(torch.split(student, 2), torch.split(teacher, 2), strict=True))


def whole(metric: CompletionMetric | TokenMetric) -> Given:
    """Return one batch of everything."""
    return generations() if isinstance(metric, CompletionMetric) else of_kind("ordinary")


def measured(metric: CompletionMetric | TokenMetric, given: Iterable[Given]) -> CompletionMetric | TokenMetric:
    """Return a copy of the metric, as at the beginning, that these batches have updated."""
    fresh = copy.deepcopy(metric)
    fresh.reset()
    for one in given:
        if isinstance(fresh, TokenMetric):
            assert not isinstance(one, Generations)
            _update(fresh, *one)
        else:
            assert isinstance(one, Generations)
            fresh.update(one)
    return fresh


def _update(metric: TokenMetric, student: Tensor, teacher: Tensor) -> None:
    """Update a metric with tokens, without a teacher where it needs none; each row's likeliest token is written."""
    written = (student.argmax(-1),) if metric.needs_ids else ()
    metric.update(student, teacher if metric.needs_teacher else None, *written)


def assert_same(one: CompletionMetric | TokenMetric, other: CompletionMetric | TokenMetric, message: str) -> None:
    """Assert that two metrics have the same value, up to rounding."""
    first, second = float(one.compute()), float(other.compute())
    assert second == pytest.approx(first, rel=1e-5, abs=1e-6), f"`{name(one)}` is {first}, and {second} {message}"


@each
def test_a_metric_has_a_name(metric: CompletionMetric | TokenMetric) -> None:
    """Check that there is a name to log the metric under."""
    logged = getattr(metric, "name", None)
    named = isinstance(logged, str) and logged and "." not in logged
    assert named, f"`{name(metric)}.name` must be a text without a dot, under which it is logged, got {logged!r}."


@each
def test_a_value_is_a_finite_number(metric: CompletionMetric | TokenMetric) -> None:
    """Check that the value is one finite number, also before there is anything to measure."""
    for given in ([], [whole(metric)]):
        value = measured(metric, given).compute()
        assert isinstance(value, Tensor), f"The value must be a tensor of one number, got {value!r}."
        assert value.dim() == 0, f"The value must be a tensor of one number, got {value!r}."
        assert value.isfinite(), f"The value must be finite, got {float(value)} of {len(given)} batches."


@each
def test_batches_decide_nothing(metric: CompletionMetric | TokenMetric) -> None:
    """Check that any batches, in any order, give the value of all together."""
    expected, parts = measured(metric, [whole(metric)]), batches(metric)
    assert_same(expected, measured(metric, parts), "of the same in smaller batches.")
    assert_same(expected, measured(metric, parts[::-1]), "of the same in another order.")


@each
def test_ranks_decide_nothing(metric: CompletionMetric | TokenMetric) -> None:
    """Check that the states of two ranks, joined, give the value of one rank that has measured everything."""
    parts = batches(metric)
    one, other = measured(metric, parts[:1]), measured(metric, parts[1:])
    theirs: Any
    for state, theirs in other.metric_state.items():
        own, join = getattr(one, state), one._reductions[state]
        assert callable(join), f"The state `{state}` needs a `dist_reduce_fx`, such as 'sum', got {join}."
        setattr(one, state, own + theirs if isinstance(own, list) else join(torch.stack([own, theirs])))
    message = "on two ranks. What is remembered must be states of `add_state` with a `dist_reduce_fx`."
    assert_same(measured(metric, parts), one, message)


@each
def test_a_reset_metric_begins_anew(metric: CompletionMetric | TokenMetric) -> None:
    """Check that nothing is left of the last validation after `reset`."""
    used = measured(metric, [whole(metric)])
    used.reset()
    assert_same(measured(metric, []), used, "after a reset. What is remembered must be states of `add_state`.")


@each
def test_what_is_measured_is_left_alone(metric: CompletionMetric | TokenMetric) -> None:
    """Check that an update changes nothing in place, since other metrics are given the same."""
    given = whole(metric)
    before = copy.deepcopy(given)
    measured(metric, [given])
    assert _same(given, before), f"`{name(metric)}` has changed in place what it was given."


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Generations) and isinstance(other, Generations):
        return all(_same(value, vars(other)[field]) for field, value in vars(one).items())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


@pytest.mark.parametrize("metric", installed(CompletionMetric), ids=name)
def test_one_completion_of_each_prompt_will_do(metric: CompletionMetric) -> None:
    """Check that a metric can measure, or says that it cannot by `needs_group`, where prompts have one completion."""
    given = generations()
    known: dict[str, Any] = {name: of[:, :1] for name in PERHAPS if (of := getattr(given, name)) is not None}
    first = replace(
        given,
        texts=given.texts[::SAMPLES],
        tokens=given.tokens[::SAMPLES],
        rewards=given.rewards[:, :1],
        finished=given.finished[:, :1],
        **known,
    )
    if not metric.needs_group:
        assert measured(metric, [first]).compute().isfinite()


@of_tokens
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_a_finite_value(metric: TokenMetric, kind: str) -> None:
    """Check that tokens have finite values, whatever the distributions; no tokens have none."""
    student, teacher = of_kind(kind)
    assert measured(metric, [(student, teacher)]).compute().isfinite(), (
        f"Tokens of the kind {kind} have no finite mean."
    )
    nobody = measured(metric, [(student[:0], teacher[:0])])
    assert float(nobody.weight) == 0, f"No tokens must count for nothing, got a weight of {float(nobody.weight)}."


@pytest.mark.parametrize("family", FAMILIES, ids=name)
@pytest.mark.parametrize("samples", [1, SAMPLES])
def test_a_family_has_metrics_of_different_names(family: MetricFamily, samples: int) -> None:
    """Check that the members are metrics, whose names differ."""
    members = family.members(samples)
    assert all(isinstance(member, CompletionMetric | TokenMetric) for member in members), f"Metrics, got {members}."
    names = [member.name for member in members]
    assert len(set(names)) == len(names), f"The names of the members must differ, got {names}."
