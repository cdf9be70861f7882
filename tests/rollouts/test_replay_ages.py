"""How old replayed rows are, and what their age does."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.core.memory import Memories
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.objectives import Distill
from veto_pl.rollouts import FromDataset, FromStudent, Mixture, Replay, Sampling
from veto_pl.seams import RolloutSource, Sequences, Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models

LETTERS = ALPHABET[1:]
quick = settings(deadline=None, derandomize=True, max_examples=15)


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def batch_of(models, index):
    """Two prompts that tell the optimizer step at which they were asked, below 256."""
    name = LETTERS[index // 16] + LETTERS[index % 16]
    return prompt_batch(models, [f"{name}>", f"{name}{name}>"], ["a", "b"])


def asked_at(prompt):
    return LETTERS.index(prompt[0]) * 16 + LETTERS.index(prompt[1])


def run(source, models, start, stop):
    """What each step trains on: the step at which each row was written, and its age."""
    log = []
    for index in range(start, stop):
        rows = source(batch_of(models, index), models, Step(index, 100))
        models.memories.end_step()
        examples = [rows.prompts.examples[i] for i in rows.prompt_rows.tolist()]
        log.append(list(zip([asked_at(e.prompt) for e in examples], rows.age.tolist(), strict=True)))
    return log


@given(
    fraction=st.sampled_from([0.3, 0.7, 1.0]),
    max_age=st.sampled_from([None, 1, 2, 5]),
    capacity=st.sampled_from([3, 8, 100]),
)
@quick
def test_a_row_is_as_old_as_the_steps_since_it_was_written(models, fraction, max_age, capacity):
    source = Replay(FromDataset(), fraction, capacity, max_age)
    own = replace(models, memories=Memories())
    log = run(source, own, 0, 40)
    last_fresh = None
    for index, rows in enumerate(log):
        assert [written + age for written, age in rows] == [index] * len(rows)
        fresh = [age for _, age in rows] == [0.0, 0.0]
        if not fresh:
            assert last_fresh is not None
            assert max(age for _, age in rows) <= (max_age or 40)
        elif fraction == 1.0 and last_fresh is not None:
            assert index - last_fresh > (max_age or 40), "only where all rows are too old"
        last_fresh = index if fresh else last_fresh
    assert last_fresh is not None
    assert any(age > 0 for rows in log for _, age in rows)


def test_ages_go_on_from_a_checkpoint(models, tmp_path):
    source = Replay(FromDataset(), 0.7, 6, 4)
    whole = run(source, replace(models, memories=Memories()), 0, 30)
    first, second = (replace(models, memories=Memories()) for _ in range(2))
    assert run(source, first, 0, 11) == whole[:11]
    torch.save(first.memories.states(), tmp_path / "saved")
    second.memories.restore(torch.load(tmp_path / "saved", weights_only=True))
    assert run(source, second, 11, 30) == whole[11:]


def old_states(source, models):
    """A checkpoint of a version that knew no ages."""
    own = replace(models, memories=Memories())
    run(source, own, 7, 8)
    ((key, state),) = own.memories.states()[0].items()
    rows = [row for group in state["groups"] for row in group]
    for row in rows:
        del row["written"]
    return [{key: {"rows": rows, "filled": True}}]


def test_rows_of_a_checkpoint_without_ages_count_from_the_start(models):
    source = Replay(FromDataset(), 1.0)
    own = replace(models, memories=Memories())
    own.memories.restore(old_states(source, models))
    (rows,) = run(source, own, 9, 10)
    assert sorted(rows) == [(7, 9.0), (7, 9.0)]


def test_rows_of_a_checkpoint_without_ages_may_be_too_old(models):
    source = Replay(FromDataset(), 1.0, max_age=3)
    own = replace(models, memories=Memories())
    own.memories.restore(old_states(source, models))
    assert run(source, own, 9, 10) == [[(9, 0.0), (9, 0.0)]]


def test_a_rank_without_rows_replays_none(models):
    """All ranks take the same turn; one that had no prompts at the fresh step has nothing to give."""
    source = Replay(FromStudent(Sampling(max_new_tokens=3)), 1.0, max_age=3)
    own = replace(models, memories=Memories())
    source(batch_of(models, 0).rows(torch.arange(0)), own, Step(0, 9))
    own.memories.end_step()
    again = source(batch_of(models, 1), own, Step(1, 9))
    assert (len(again), len(again.age)) == (0, 0)


@dataclass(frozen=True)
class Foreign(RolloutSource):
    """The student's completions, by an engine that gives each token another probability."""

    sampling: Sampling = Sampling(max_new_tokens=6)

    def __call__(self, prompts, models, step):
        rows = FromStudent(self.sampling)(prompts, models, step)
        return replace(rows, engine_log_ratio=rows.input_ids.float().sin() * rows.completion_mask)


def replayed(source, models, path):
    """A rollout, and what is drawn of it in the next step, from a checkpoint that was written in between."""
    first, second = (replace(models, memories=Memories()) for _ in range(2))
    fresh = source(batch_of(models, 1), first, Step(0, 9))
    first.memories.end_step()
    torch.save(first.memories.states(), path)
    second.memories.claim([source])
    second.memories.restore(torch.load(path, weights_only=True))
    return fresh, source(batch_of(models, 2), second, Step(1, 9))


def test_a_replayed_row_is_corrected_for_the_engine_that_has_written_it(models, tmp_path):
    source = Replay(Foreign(), 1.0)
    fresh, again = replayed(source, models, tmp_path / "saved")
    for rows in (fresh, again):
        ratio = rows.input_ids.float().sin() * rows.completion_mask
        torch.testing.assert_close(rows.engine_log_ratio, ratio, rtol=0, atol=0)
    objective = Distill(rollout=source)
    losses = [
        objective.loss({source: replace(rows, age=None)}, models, Step(1, 9)).terms["loss"].total
        for rows in (fresh, again, replace(again, engine_log_ratio=None))
    ]
    torch.testing.assert_close(losses[1], losses[0])
    assert abs(losses[2] - losses[0]) > 0.01 * abs(losses[0])


def test_the_gap_that_is_logged_is_that_of_fresh_rows(models, tmp_path):
    fresh, again = replayed(Replay(Foreign(), 1.0), models, tmp_path / "saved")
    gaps = [rollout_numbers([rows], models.eos_ids)["engine_gap"] for rows in (fresh, again)]
    assert gaps[0].weight > 0
    assert gaps[1].weight == 0


def test_rows_of_the_trainers_own_arithmetic_are_replayed_without_a_correction(models, tmp_path):
    _, again = replayed(Replay(FromStudent(Sampling(max_new_tokens=6)), 1.0), models, tmp_path / "saved")
    assert again.engine_log_ratio is None


def test_the_mean_age_is_logged(models):
    rows = Replay(FromDataset())(batch_of(models, 3), models, Step(3, 9))
    aged = replace(rows, age=torch.tensor([1.0, 4.0]))
    assert float(rollout_numbers([aged], models.eos_ids)["age"].mean()) == 2.5


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_a_stale_row_counts_less(models, decay, aggregation):
    """The loss is the sum of the rows' losses, each with its weight; the denominator stays."""
    objective = Distill(staleness_decay=decay, aggregation=aggregation)
    rows = FromDataset()(prompt_batch(models, ["abc>", "d>", "fg>"], ["cba", "d", "gfabcd"]), models, Step(0, 9))
    ages = torch.tensor([0.0, 2.0, 5.0])

    def loss(objective, rows):
        return objective.loss({objective.rollout: rows}, models, Step(0, 9)).terms["loss"]

    alone = [loss(Distill(aggregation=aggregation), rows.rows(torch.tensor([i]))) for i in range(3)]
    expected = sum(decay**age * part.total for age, part in zip(ages.tolist(), alone, strict=True))
    found = loss(objective, replace(rows, age=ages))
    torch.testing.assert_close(found.total, expected)
    assert float(found.weight) == sum(float(part.weight) for part in alone)
    gradients = [
        torch.autograd.grad(total, models.student.parameters(), retain_graph=True) for total in (found.total, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rows_without_ages_are_left_alone(models):
    rows = FromDataset()(prompt_batch(models, ["abc>", "d>"], ["cba", "d"]), models, Step(0, 9))
    plain, decayed = Distill(), Distill(staleness_decay=0.5)
    totals = [x.loss({x.rollout: rows}, models, Step(0, 9)).terms["loss"].total for x in (plain, decayed)]
    assert float(totals[0].detach()) == float(totals[1].detach())
    assert (plain.couples_tokens, decayed.couples_tokens) == (False, True)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ConfigurationError, match=r"`Distill\.staleness_decay` must lie in \(0, 1\], got"):
        Distill(staleness_decay=decay)


def test_an_age_below_1_is_refused():
    with pytest.raises(ConfigurationError, match=r"`Replay\.max_age` must be at least 1, got 0"):
        Replay(max_age=0)


def test_ages_and_writers_are_known_in_a_mixture(models):
    """A part that lacks the field is fresh, and nobody took turns there: its rows must not cost the others theirs."""
    batch = prompt_batch(models, ["abc>", "d>", "fg>"], ["cba", "d", "gfabcd"])
    replayed = replace(FromDataset()(batch, models, Step(0, 9)), age=torch.tensor([3.0, 1.0, 2.0]))
    plain = FromDataset()(batch, models, Step(0, 9))
    taken = replace(plain, by_teacher=plain.loss_mask)
    joined = Sequences.concatenate([replayed, taken, plain])
    assert joined.age.tolist() == [3.0, 1.0, 2.0, *[0.0] * 6]
    assert torch.equal(joined.by_teacher.any(1), torch.tensor([False] * 3 + [True] * 3 + [False] * 3))
    assert Sequences.concatenate([plain, plain]).age is None
    assert Sequences.concatenate([replace(plain, sampler_logp=plain.loss_mask.float()), plain]).sampler_logp is None


def test_a_mixture_with_a_replay_decays(models):
    source = Mixture(Replay(FromStudent(Sampling(max_new_tokens=3)), fraction=1.0), FromDataset(), coin="sample")
    own = replace(models, memories=Memories())
    for index in range(3):
        rows = source(prompt_batch(models, ["abc>", "d>", "fg>", "h>"], ["cba", "d", "gf", "h"]), own, Step(index, 9))
        own.memories.end_step()
    assert rows.age.max() > 0
