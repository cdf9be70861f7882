"""Objectives whose terms come and go over the run."""

from collections import Counter

import pytest
import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import SFT, Distill, Phases, SeqKD, Sum
from veto_pl.parts.advantages import LogRatio
from veto_pl.parts.schedules import Linear, StepWise
from veto_pl.rollouts import FromDataset, FromStudent, FromTeacher, Sampling
from veto_pl.seams import Law, Step
from veto_pl.testing.tiny import prompt_batch, tiny_models

STUDENT = FromStudent(Sampling(max_new_tokens=4))
ON_POLICY = Distill(rollout=STUDENT)
START, END = Step(0, 10), Step(9, 10)


def sources(objective, step):
    return objective.active(step).sources


def loss(objective, models, step):
    batch = prompt_batch(models, ["abc>", "d>"], ["cba", "d"])
    active = objective.active(step)
    rollouts = {source: source(batch, models, step) for source in active.sources}
    return active.loss(rollouts, models, step)


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def test_a_term_of_weight_0_is_neither_rolled_out_nor_scored(models):
    weights = {"gold": StepWise((1.0, 0.0), (0.5,)), "own": StepWise((0.0, 2.0), (0.5,))}
    both = Sum(terms={"gold": SFT(), "own": ON_POLICY}, weights=weights)
    assert both.sources == (FromDataset(), STUDENT)
    assert (sources(both, START), sources(both, END)) == ((FromDataset(),), (STUDENT,))
    assert set(loss(both, models, START).terms) == {"gold/loss"}
    late, plain = loss(both, models, END).terms, loss(ON_POLICY, models, END).terms
    torch.testing.assert_close(late["own/loss"].total, 2 * plain["loss"].total)


def test_a_sum_whose_weights_are_all_0_stays_whole(models):
    both = Sum(terms={"gold": SFT(), "own": ON_POLICY}, weights={"gold": 0.0, "own": 0.0})
    assert both.active(START) is both
    assert all(float(stat.total.detach()) == 0 for stat in loss(both, models, START).terms.values())


def test_weights_follow_their_schedule():
    half = Sum(terms={"gold": SFT()}, weights={"gold": Linear(1.0, 0.0)})
    assert [half.weight("gold", Step(i, 4)) for i in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0])
def test_a_phase_is_its_objective(models, switch):
    phases = Phases(first=SeqKD(rollout=FromTeacher(Sampling(max_new_tokens=4))), then=ON_POLICY, switch=switch)
    chosen = Counter(type(phases.active(Step(i, 10))) for i in range(10))
    assert chosen == Counter({SeqKD: round(10 * switch), Distill: 10 - round(10 * switch)})
    step = START if switch else END
    expected = loss(phases.first if switch else phases.then, models, step)
    assert float(loss(phases, models, step).terms["loss"].total) == float(expected.terms["loss"].total)


def test_phases_need_what_either_needs(monkeypatch):
    for need in ("needs_rewards", "needs_reference"):
        monkeypatch.setattr(LogRatio, need, True)
    judged = Distill(advantage=LogRatio())
    assert (judged.needs_rewards, judged.needs_reference) == (True, True)
    phases = Phases(first=SFT(), then=judged)
    assert (phases.needs_teacher, phases.needs_rewards, phases.needs_reference) == (True, True, True)
    assert not Phases(first=SFT(), then=SFT()).needs_teacher
    assert Law.SPLIT_INVARIANT in phases.laws


def test_a_switch_outside_the_run_is_refused():
    with pytest.raises(ConfigurationError, match=r"`Phases\.switch` must lie in \[0, 1\], got 1\.5"):
        Phases(first=SFT(), then=SFT(), switch=1.5)
