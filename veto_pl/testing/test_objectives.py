"""Every installed objective on tiny models: masked means removed, however the batch is split."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from veto_pl.plugins import load_plugins
from veto_pl.seams import Law, Models, Objective, RolloutSource, Sequences, Stat, Step
from veto_pl.testing.examples import installed
from veto_pl.testing.tiny import prompt_batch, tiny_models

load_plugins()

STEP = Step(2, 10)
PROMPTS = ["abc>", "d>", "efghij>", "ka>", "b>"]
COMPLETIONS = ["cba", "d", "jihgfe", "akak", "bbbbb"]
TRAINED = torch.tensor([0, 0, 1, 2, 3])
"""The prompt of each row: one has two completions, and the last has none until a test adds one."""
SPLITS = [[[0], [1], [2], [3]], [[3, 1, 0], [2]]]

Update = tuple[Tensor, Tensor]
Fixed = Mapping[RolloutSource, Sequences]
OBJECTIVES = installed(Objective)


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """The weight of each term, and loss and gradient, of rollouts that nothing was done to."""

    weights: dict[str, float]
    update: Update


Plain = Callable[[Objective], Undisturbed]


def name(instance: object) -> str:
    """Return the name of a test case: that of its class."""
    return type(instance).__name__


each = pytest.mark.parametrize("objective", OBJECTIVES, ids=name)


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models that all tests share, since none trains them.

    They have absolute positions, so that misplaced padding shows, and dropout in the teacher alone, which must not use
    it.
    """
    return tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@pytest.fixture(scope="module")
def plain(models: Models) -> Plain:
    """Return a cached function from an objective to its weights, loss and gradient on unchanged rollouts."""
    known: dict[int, Undisturbed] = {}

    def compute(objective: Objective) -> Undisturbed:
        if id(objective) not in known:
            stats = terms(objective, fixed(objective, models), models)
            known[id(objective)] = Undisturbed(weights(stats), update([stats], models))
        return known[id(objective)]

    return compute


def written(models: Models, seed: int) -> Sequences:
    """Return fixed completions of the prompts with random log-probabilities and rewards, different for each seed."""
    completions = COMPLETIONS[seed % 5 :] + COMPLETIONS[: seed % 5]
    batch = prompt_batch(models, PROMPTS, completions)
    given = Sequences.join(batch, batch.completion_ids, batch.completion_mask).rows(torch.arange(5)[TRAINED])
    generator = torch.Generator().manual_seed(seed)
    guesses = -3 * torch.rand(given.loss_mask.shape, generator=generator)
    rewards = torch.randint(2, (len(given),), generator=generator).float()
    rewards[1] = 1 - rewards[0]  # else there is nothing to learn from comparing the two
    return dataclasses.replace(
        given,
        on_policy=torch.ones(len(given), dtype=torch.bool),
        sampler_logp=guesses.masked_fill(~given.loss_mask, 0.0),
        rewards=rewards,
    )


def fixed(objective: Objective, models: Models) -> Fixed:
    """Return a fixed rollout for every source of an objective."""
    return {source: written(models, seed) for seed, source in enumerate(objective.sources)}


def changed(rollouts: Fixed, change: Callable[[Sequences], Sequences]) -> Fixed:
    """Return the rollouts with the same change made to each."""
    return {source: change(sequences) for source, sequences in rollouts.items()}


def of_prompts(sequences: Sequences, prompts: list[int]) -> Sequences:
    """Return the rows that continue these prompts."""
    return sequences.rows(torch.isin(sequences.prompt_rows, torch.tensor(prompts)))


def terms(objective: Objective, rollouts: Fixed, models: Models) -> Mapping[str, Stat]:
    """Return the undivided loss terms."""
    return objective.loss(rollouts, models, STEP).terms


def weights(stats: Mapping[str, Stat]) -> dict[str, float]:
    """Return the number that each term is divided by."""
    return {key: float(stat.weight) for key, stat in stats.items()}


def update(stats: list[Mapping[str, Stat]], models: Models) -> Update:
    """Return loss and flat gradient of a window of micro-batches, each term divided by its summed weight."""
    summed = {key: sum((part[key] for part in stats[1:]), stats[0][key]) for key in stats[0]}
    loss = torch.stack([stat.mean() for stat in summed.values()]).sum()
    trained = list(models.student.parameters())
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, gradients, strict=True)]
    return loss.detach(), torch.cat([gradient.flatten() for gradient in filled])


def assert_same(one: Update, other: Update) -> None:
    """Assert equality up to the rounding of float32, relative to the gradient's largest entry."""
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-5)
    scale = max(1.0, float(other[1].abs().max()))
    torch.testing.assert_close(one[1] / scale, other[1] / scale, rtol=0, atol=1e-5)


@each
def test_there_is_something_to_learn(objective: Objective, plain: Plain) -> None:
    """Check that the loss is finite and has a gradient, without which the other tests would prove nothing."""
    loss, gradient = plain(objective).update
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1e-4


@each
@pytest.mark.parametrize(("left", "right"), [(3, 0), (1, 4)])
def test_padding_changes_nothing(objective: Objective, models: Models, plain: Plain, left: int, right: int) -> None:
    """Check that the place, the width and the ids of padding change nothing."""

    def padded(sequences: Sequences) -> Sequences:
        grids = {"attention_mask": False, "loss_mask": False, "sampler_logp": 0.0, "input_ids": 5}
        wider: dict[str, Any] = {
            key: pad(getattr(sequences, key), (left, right), value=value) for key, value in grids.items()
        }
        return dataclasses.replace(sequences, **wider)

    wide = terms(objective, changed(fixed(objective, models), padded), models)
    assert weights(wide) == plain(objective).weights
    assert_same(update([wide], models), plain(objective).update)


@each
def test_a_row_without_tokens_changes_nothing(objective: Objective, models: Models, plain: Plain) -> None:
    """Check that a row whose completion is masked as a whole changes nothing."""

    def with_silent_row(sequences: Sequences) -> Sequences:
        row = sequences.rows(torch.tensor([3]))
        silent = dataclasses.replace(row, loss_mask=torch.zeros_like(row.loss_mask), prompt_rows=torch.tensor([4]))
        return Sequences.concatenate([silent, sequences])

    more = terms(objective, changed(fixed(objective, models), with_silent_row), models)
    assert weights(more) == plain(objective).weights
    assert_same(update([more], models), plain(objective).update)


@pytest.mark.parametrize("objective", [x for x in OBJECTIVES if Law.SPLIT_INVARIANT in x.laws], ids=name)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_any_split_of_the_prompts_gives_the_same_update(
    objective: Objective, models: Models, plain: Plain, split: list[list[int]]
) -> None:
    """Check that micro-batches, divided once by their summed weight, give the gradient of the whole batch."""
    rollouts = fixed(objective, models)
    parts = [changed(rollouts, partial(of_prompts, prompts=prompts)) for prompts in split]
    assert_same(update([terms(objective, part, models) for part in parts], models), plain(objective).update)


@each
def test_no_tokens_give_a_zero_that_can_be_differentiated(objective: Objective, models: Models) -> None:
    """Check that a micro-batch without completion tokens contributes zeros and no NaN."""

    def silenced(sequences: Sequences) -> Sequences:
        return dataclasses.replace(sequences, loss_mask=torch.zeros_like(sequences.loss_mask))

    stats = terms(objective, changed(fixed(objective, models), silenced), models)
    loss, gradient = update([stats], models)
    assert all(stat.weight == 0 and stat.total.requires_grad for stat in stats.values())
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("objective", [x for x in OBJECTIVES if hasattr(x, "chunk_rows")], ids=name)
def test_the_size_of_chunks_changes_nothing(objective: Any, models: Models, plain: Plain) -> None:
    """Check that chunks of three rows, with a shorter last one, change neither loss nor gradient."""
    rollouts = fixed(objective, models)
    chunked = dataclasses.replace(objective, chunk_rows=3)
    mine: Fixed = dict(zip(chunked.sources, rollouts.values(), strict=True))
    assert_same(update([terms(chunked, mine, models)], models), plain(objective).update)


with_teacher = pytest.mark.parametrize("objective", [x for x in OBJECTIVES if x.needs_teacher], ids=name)


@with_teacher
def test_the_teacher_gets_no_gradient(objective: Objective, models: Models) -> None:
    """Check that a teacher gets no gradient, even if its parameters were not frozen."""
    models = copy.deepcopy(models)
    teacher = models.required_teacher()
    teacher.requires_grad_(True)
    loss = torch.stack([stat.mean() for stat in terms(objective, fixed(objective, models), models).values()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in models.student.parameters())


@with_teacher
def test_the_teacher_reads_without_dropout(objective: Objective, models: Models) -> None:
    """Check that a teacher in training mode is read without dropout, and stays in training mode."""
    models = copy.deepcopy(models)
    rollouts = fixed(objective, models)
    expected = {key: float(stat.total.detach()) for key, stat in terms(objective, rollouts, models).items()}
    models.required_teacher().train()
    assert {key: float(stat.total.detach()) for key, stat in terms(objective, rollouts, models).items()} == expected
    assert models.required_teacher().training
