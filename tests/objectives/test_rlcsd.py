"""RLCSD: what hints are shown, GRPO as a limit, and the whole loss by plain loops in float64."""

import math
from dataclasses import replace

import pytest
import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import OPD, RLCSD
from veto_pl.parts.advantages import WithReward
from veto_pl.parts.contexts import Peer
from veto_pl.parts.credit import HintContrast
from veto_pl.parts.panels import Together
from veto_pl.parts.wrong_peer import WrongPeer
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Sequences, Step
from veto_pl.testing.tiny import prompt_batch, tiny_models

STEP = Step(0, 10)
TEXTS = ("{peer}{prompt}", "{completion}>")
RIGHT, WRONG = Peer(*TEXTS), tuple(WrongPeer(*TEXTS, place=place) for place in range(2))
SAMPLED = FromStudent(Sampling(num_completions=4))
ANSWERS = ["cba", "ab", "cab", "b", "d", "dd", "e", "f"]
REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
PROMPTS = [0, 0, 0, 0, 1, 1, 2, 2]
"""The first prompt has one success and three failures, the second no failure, the third one of each."""


@pytest.fixture(scope="module")
def models():
    made = tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    for model in (made.student, made.teacher):
        model.double()
    return made


def rows_of(models, order=None):
    batch = prompt_batch(models, ["abc>", "d>", "ef>"])
    answers = prompt_batch(models, ["a"] * len(ANSWERS), ANSWERS)
    given = Sequences.join(batch.rows(torch.tensor(PROMPTS)), answers.completion_ids, answers.completion_mask)
    rows = replace(given, prompt_rows=torch.tensor(PROMPTS), prompts=batch, rewards=torch.tensor(REWARDS))
    return rows if order is None else rows.rows(torch.tensor(order))


def update(objective, models, rows):
    models.student.zero_grad(set_to_none=True)
    output = objective.loss({objective.rollout: rows}, models, STEP)
    output.terms["loss"].total.backward()
    return output, torch.cat([p.grad.flatten() for p in models.student.parameters()])


def objective_of(**settings):
    return RLCSD(rollout=SAMPLED, context=RIGHT, contrasts=WRONG, importance_cap=None, **settings)


def test_wrong_completions_of_the_prompt_are_shown_and_never_the_rows_own(models):
    rows = rows_of(models)
    assert RIGHT.peers(rows).tolist() == [-1, 0, 0, 0, 5, 4, 7, -1]
    assert WRONG[0].peers(rows).tolist() == [1, 2, 1, 1, -1, -1, -1, 6]
    assert WRONG[1].peers(rows).tolist() == [2, 3, 3, 2, -1, -1, -1, -1]
    told = WRONG[0](rows, models, STEP)
    shown = [models.tokenizer.decode(ids[mask]) for ids, mask in zip(told.input_ids, told.attention_mask, strict=True)]
    assert shown[0].startswith("ab>abc>cba")
    assert WRONG[0].informed(rows).tolist() == [True] * 4 + [False] * 3 + [True]


def test_without_strength_it_is_grpo(models):
    rows = rows_of(models)
    plain = update(objective_of(strength=0.0), models, rows)
    scaled = OPD(rollout=SAMPLED, importance_cap=None, aggregation="sequence")
    object.__setattr__(scaled, "advantage", Outcome())
    object.__setattr__(scaled, "needs_rewards", True)
    grpo = update(scaled, models, rows)
    torch.testing.assert_close(plain[1], grpo[1], rtol=1e-4, atol=1e-7)


class Outcome(WithReward):
    """GRPO's credit alone."""

    def __call__(self, grid):
        whole = WithReward(scale="std")(grid)
        return whole - grid.log_ratio()


def logp(models, rows, model):
    """The log-probability of each token that counts, row by row, each row read alone."""
    found = []
    for ids, there, counts in zip(rows.input_ids, rows.attention_mask, rows.loss_mask, strict=True):
        places = counts[there].nonzero()[:, 0]
        logits = model.model(ids[there][None]).logits[0, places - 1, : model.vocab_size]
        found.append(logits.log_softmax(-1).gather(1, ids[there][places][:, None])[:, 0])
    return found


@pytest.mark.parametrize("settings", [{}, {"strength": 3.0, "scale": 0.5, "threshold": 0.3, "selected_weight": 0.5}])
def test_the_loss_against_plain_loops(settings, models):
    rows, objective = rows_of(models), objective_of(**settings)
    output, gradient = update(objective, models, rows)
    models.student.zero_grad()
    own = logp(models, rows, models.student)
    with torch.no_grad():
        right = logp(models, RIGHT(rows, models, STEP), models.teacher)
        wrong = [logp(models, context(rows, models, STEP), models.teacher) for context in WRONG]
    has_right, has_wrong = RIGHT.informed(rows), [context.informed(rows) for context in WRONG]
    total, kinds = 0.0, set()
    for row, prompt in enumerate(PROMPTS):
        group = [reward for reward, other in zip(REWARDS, PROMPTS, strict=True) if other == prompt]
        mean = sum(group) / len(group)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
        outcome = (REWARDS[row] - mean) / (deviation + 1e-6)
        paths = {"chosen": [], "other": []}
        for place, token in enumerate(own[row]):
            said = [float(one[row][place].exp()) for one, told in zip(wrong, has_wrong, strict=True) if told[row]]
            contrast = float(right[row][place]) - math.log(sum(said) / len(said)) if said and has_right[row] else 0.0
            shift = max(-2.0, min(2.0, objective.strength * math.tanh(contrast / objective.scale)))
            if abs(shift) > objective.threshold:
                moved = outcome + shift
                credit = max(moved, 0) if outcome > 0 else min(moved, 0) if outcome < 0 else 0.0
                paths["chosen"].append(-objective.selected_weight * credit * token)
            else:
                paths["other"].append(-outcome * token)
        kinds |= {kind for kind, values in paths.items() if values}
        total = total + sum(sum(values) / len(values) for values in paths.values() if values)
    assert kinds == {"chosen", "other"}
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in models.student.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    assert float(output.terms["loss"].weight) == len(PROMPTS)


def test_a_prompt_without_a_wrong_completion_has_the_outcome_alone(models):
    """The second prompt has successes alone, so nothing is learned from it; the third lacks one hint for each row."""
    only = [4, 5, 6, 7]
    plain, strong = (update(objective_of(strength=s), models, rows_of(models, only)) for s in (0.0, 0.5))
    torch.testing.assert_close(plain[1], strong[1], rtol=1e-6, atol=1e-9)
    assert plain[1].abs().max() > 0


def test_a_prompt_is_the_same_alone(models):
    whole = update(objective_of(), models, rows_of(models))
    parts = [update(objective_of(), models, rows_of(models, rows)) for rows in ([0, 1, 2, 3], [4, 5], [6, 7])]
    torch.testing.assert_close(whole[1], sum(one[1] for one in parts), rtol=1e-6, atol=1e-8)


def test_several_teachers_are_refused():
    with pytest.raises(ConfigurationError, match=r"`RLCSD` contrasts what one teacher says in several contexts, but"):
        RLCSD(panel=Together())


def test_an_objective_without_contrasts_is_refused_by_name(models):
    objective = OPD(rollout=SAMPLED, importance_cap=None)
    object.__setattr__(objective, "advantage", HintContrast())
    with pytest.raises(ConfigurationError, match="the objective has no `contrasts`"):
        update(objective, models, rows_of(models))


def test_it_says_what_it_needs():
    assert RLCSD().needs_rewards
    assert RLCSD().compares_completions
    assert [context.place for context in RLCSD().contrasts] == [0, 1, 2, 3]
