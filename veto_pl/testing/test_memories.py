"""Every installed source that remembers something, in runs that are stopped and resumed."""

from __future__ import annotations

import io
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from veto_pl.core.memory import State, remembers
from veto_pl.plugins import load_plugins
from veto_pl.seams import Models, RolloutSource, Sequences, Step
from veto_pl.testing.examples import installed
from veto_pl.testing.rows import TOTAL, beginning, difference, run, tiny_prompts
from veto_pl.testing.test_rollouts import check_fields, name
from veto_pl.testing.tiny import tiny_models

load_plugins()

STOPPED = 3
"""The optimizer step that a checkpoint is taken before, or in the middle of."""

each = pytest.mark.parametrize("source", [x for x in installed(RolloutSource) if remembers(x)], ids=name)


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models that all tests share, since none trains them."""
    return tiny_models("gpt2")


def saved(models: Models) -> list[dict[str, State]]:
    """Return the states of the memories, saved and loaded as a checkpoint does."""
    states, file = models.memories.states(), io.BytesIO()
    try:
        torch.save(states, file)
        file.seek(0)
        loaded: list[dict[str, State]] = torch.load(file, weights_only=True)
    except Exception as error:
        raise AssertionError(
            f"`Memory.state` must hold tensors and plain values, which `torch.load(weights_only=True)` reads: {error}"
        ) from error
    moved = [tensor.device for tensor in tensors(states) if tensor.device.type != "cpu"]
    assert not moved, f"The tensors of `Memory.state` must be on the CPU, got some on {moved[0]}."
    return loaded


def tensors(state: Any) -> list[Tensor]:
    """Return all tensors of a state, at any depth."""
    if isinstance(state, Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors(value)]


def assert_same(expected: list[Sequences], found: list[Sequences], message: str) -> None:
    """Assert that two runs have written the same in each micro-batch."""
    for place, (one, other) in enumerate(zip(expected, found, strict=True)):
        different = difference(one, other)
        assert not different, f"{message} Micro-batch {place} after it: {different}."


@each
@pytest.mark.parametrize("written", [0, 1])
def test_a_run_goes_on_from_a_checkpoint(source: RolloutSource, models: Models, written: int) -> None:
    """Check that a resumed run writes what the whole run writes, repeating a step that was not finished.

    The checkpoint is taken when `written` micro-batches of a step are written.
    """
    whole, resumed = beginning(source, models), beginning(source, models)
    list(run(source, whole, range(STOPPED)))
    remaining = run(source, whole, range(STOPPED, TOTAL))
    rows = list(islice(remaining, written))
    states = saved(whole)
    rows += remaining
    resumed.memories.restore(states)
    again = list(run(source, resumed, range(STOPPED, TOTAL)))
    assert_same(
        [one for _, one in rows],
        [one for _, one in again],
        f"A run that was stopped after {written} micro-batches of a step went on differently: `Memory.state` must hold "
        "all that counts and nothing else, and `Memory.restore` take it up.",
    )


@each
def test_a_checkpoint_of_two_ranks_is_resumed_by_one(source: RolloutSource, models: Models) -> None:
    """Check that `Memory.restore` accepts the states of more ranks than there are now."""
    before, after = beginning(source, models), beginning(source, models)
    list(run(source, before, range(STOPPED)))
    after.memories.restore(saved(before) * 2)
    for _, rows in run(source, after, range(STOPPED, TOTAL)):
        check_fields(rows)


@each
def test_a_step_that_was_left_out_leaves_nothing_behind(source: RolloutSource, models: Models) -> None:
    """Check that a memory forgets what it stored in a step that was skipped for a loss that is not finite."""
    plain, disturbed = beginning(source, models), beginning(source, models)
    for them in (plain, disturbed):
        list(run(source, them, range(STOPPED)))
    for micro in range(2):
        source(tiny_prompts(models, 2 + micro), disturbed, Step(STOPPED, TOTAL, micro=micro))
    disturbed.memories.end_step(done=False)
    rest = range(STOPPED + 1, TOTAL)
    one, other = ([rows for _, rows in run(source, them, rest)] for them in (plain, disturbed))
    assert_same(one, other, "`Memory.end_step(done=False)` must forget what the step has left.")
