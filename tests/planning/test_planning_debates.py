"""Plans of debates: the texts that teachers write, and what they read behind them."""

import pytest

from tests.planning.conftest import llama, module, planned
from tests.planning.test_planning_arithmetic import WIDTH, backbone
from veto_pl.objectives import MADOPD
from veto_pl.parts.panels import Together
from veto_pl.rollouts import Debate, FromDataset, Sampling
from veto_pl.rollouts.debate import LABEL

DEBATE = Debate(rounds=2, sampling=Sampling(max_new_tokens=8))
SAID = 2 * 2 * (8 + LABEL)
"""Tokens of a debate of two teachers."""


def plan_of(panel, **settings):
    teachers = {"code": llama(width=2 * WIDTH, seed=2), "maths": llama(width=2 * WIDTH, seed=3)}
    built = module(objective=MADOPD(rollout=FromDataset(), panel=panel), teachers=teachers)
    return planned(built, prompts=3, prompt=10, completion=16, **settings).simulated


@pytest.fixture(scope="module")
def debating():
    return plan_of(DEBATE)


@pytest.fixture(scope="module")
def together():
    return plan_of(Together())


def test_each_teacher_reads_the_debate_and_the_student_does_not(debating, together):
    assert debating.phases["teacher's scoring"].flops == 2 * backbone(3, 26 + SAID, width=2 * WIDTH)
    assert debating.phases["student's forward"].flops == together.phases["student's forward"].flops
    assert together.phases["teacher's scoring"].flops == 2 * backbone(3, 26, width=2 * WIDTH)


def test_texts_are_written_for_each_micro_batch(debating, together):
    assert together.phases["rollout"].flops == together.reads == 0
    assert debating.phases["rollout"].flops > 2 * 2 * backbone(3, 10 + 8, width=2 * WIDTH)
    assert debating.reads == 4 * 8 * debating.frozen["code"].bytes
    twice = plan_of(DEBATE, accumulate=2)
    assert twice.reads == 2 * debating.reads
    assert twice.phases["rollout"].flops == pytest.approx(2 * debating.phases["rollout"].flops)


def test_no_rounds_cost_what_together_costs(together):
    assert plan_of(Debate(rounds=0)).phases["teacher's scoring"] == together.phases["teacher's scoring"]


def test_a_validation_holds_debates_too():
    with_debates, without = (plan_of(panel, validated=2).phases["validation"] for panel in (DEBATE, Together()))
    assert with_debates.flops - without.flops > 2 * 2 * backbone(2, 10 + 8, width=2 * WIDTH)
