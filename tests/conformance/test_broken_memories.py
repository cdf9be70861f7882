"""The laws of memories can fail: each is broken by somebody, who is reported."""

from dataclasses import dataclass

import pytest
import torch

from veto_pl.core.memory import Memory
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import RolloutSource
from veto_pl.testing import test_memories as laws
from veto_pl.testing import test_rollouts
from veto_pl.testing.rows import tiny_prompts
from veto_pl.testing.tiny import tiny_models

sampled = FromStudent(Sampling(max_new_tokens=4))


class Count(Memory):
    """How many micro-batches there were before this step."""

    def __init__(self):
        self.count = self.pending = 0

    def add(self):
        self.pending += 1

    def end_step(self, *, done):
        self.count += self.pending if done else 0
        self.pending = 0

    def state(self):
        return {"count": self.count}

    def restore(self, states, rank):
        self.count = max(state["count"] for state in states)


class AtOnce(Count):
    """Does not wait for the end of the step."""

    def add(self):
        self.count += 1


class LeavesOutNothing(Count):
    """Counts steps that were left out."""

    def end_step(self, *, done):
        super().end_step(done=True)


class SavesTooMuch(Count):
    """Saves what the step has not made count yet."""

    def state(self):
        return {"count": self.count + self.pending}


class SavesNothing(Count):
    """Begins again."""

    def restore(self, states, rank):
        pass


class SavesObjects(Count):
    """Needs a pickle."""

    def state(self):
        return {"count": self}


class SavesElsewhere(Count):
    """Leaves its tensor where it was."""

    def state(self):
        return {"counts": [torch.zeros(1, device="meta")]}


class KnowsOneRank(Count):
    """Takes up its own state."""

    def restore(self, states, rank):
        (state,) = states
        self.count = state["count"]


@dataclass(frozen=True)
class _Source(RolloutSource):
    """Writes another text the more it has written."""

    memory: type[Memory] = Count
    idle: bool = True

    def __call__(self, prompts, models, step):
        memory = models.memories.of(self)
        memory.add()
        if memory.count and not self.idle and not len(prompts):
            prompts = tiny_prompts(models)
        return sampled(prompts, models, step.aside(f"{memory.count}"))

    def new_memory(self):
        return self.memory()


GOES_ON = laws.test_a_run_goes_on_from_a_checkpoint
RANKS = laws.test_a_checkpoint_of_two_ranks_is_resumed_by_one
LEFT_OUT = laws.test_a_step_that_was_left_out_leaves_nothing_behind
SAME = test_rollouts.test_the_same_step_gives_the_same_rows
NOBODY = test_rollouts.test_no_prompts_give_no_rows

END, INSIDE = {"written": 0}, {"written": 1}
BROKEN = [
    (GOES_ON, END, AssertionError, "stopped after 0 micro-batches .* went on differently", _Source(SavesNothing)),
    (GOES_ON, INSIDE, AssertionError, "stopped after 1 micro-batches .* went on differently", _Source(SavesTooMuch)),
    (GOES_ON, END, AssertionError, "must hold tensors and plain values", _Source(SavesObjects)),
    (GOES_ON, END, AssertionError, "must be on the CPU, got some on meta", _Source(SavesElsewhere)),
    (RANKS, {}, ValueError, "too many values", _Source(KnowsOneRank)),
    (LEFT_OUT, {}, AssertionError, "must forget what the step has left", _Source(LeavesOutNothing)),
    (SAME, {}, AssertionError, "Step 0 gave other rows .* must not count before", _Source(AtOnce)),
    (NOBODY, {}, AssertionError, "must give no rows, got 4", _Source(idle=False)),
]
ids = [law.__name__ for law, *_ in BROKEN]


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2")


@pytest.mark.parametrize(("law", "arguments", "error", "message", "source"), BROKEN, ids=ids)
def test_who_breaks_a_law_is_reported(law, arguments, error, message, source, models):
    with pytest.raises(error, match=message):
        law(source, models, **arguments)


@pytest.mark.parametrize(("law", "arguments"), [(law, arguments) for law, arguments, *_ in BROKEN], ids=ids)
def test_who_remembers_well_is_not(law, arguments, models):
    law(_Source(), models, **arguments)


def test_each_law_is_broken_by_somebody():
    named = {law for name, law in vars(laws).items() if name.startswith("test_")}
    assert {law for law, *_ in BROKEN} == named | {SAME, NOBODY}
