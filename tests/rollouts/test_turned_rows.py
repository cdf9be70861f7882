"""Rows with turns go wherever rows go: buffers, reports, judges, metrics and contexts."""

import math
from dataclasses import replace

import pytest
import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.objectives import OPD, Distill, UniOPD
from veto_pl.parts.contexts import Peer, behind
from veto_pl.parts.divergences import ReverseKL
from veto_pl.rollouts import FromDataset
from veto_pl.rollouts.replay import ReplayBuffer
from veto_pl.seams import Ending, Example, PromptBatch, Sequences, Step, Task, pad_left, pad_right
from veto_pl.testing.dense import dense_loss
from veto_pl.testing.tiny import tiny_models
from veto_pl.training.faulty_rows import row_reports

STEP, EOS = Step(1, 10), 1
DIALOGUES = [
    [([5, 6, EOS], [7, 8]), ([9, EOS], [])],
    [([10, 11, 12], [])],
    [([4, EOS], [3]), ([5, EOS], [6]), ([7, EOS], [])],
]
"""Of three episodes, the ids of each turn and of the reply to it."""
PROMPTS = [[3, 4], [5], [3, 4]]


class CountsCharacters(Task):
    def load(self, split):
        return []

    def reward(self, example, completion):
        return float(len(completion))


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def prompts():
    ids, mask = pad_left([torch.tensor(one) for one in PROMPTS[:2]])
    none = torch.zeros(2, 0, dtype=torch.int64)
    return PromptBatch(ids, mask, none, none.bool(), (Example("a"), Example("b")), CountsCharacters())


def rows_of(by_turn, batch=None):
    """The dialogues as a rollout: a row of each, or a row of each turn behind all before it. The third has the
    prompt of the first."""
    batch = prompts() if batch is None else batch
    rows = []
    for i, turns in enumerate(DIALOGUES):
        before, written = list(PROMPTS[i]), []
        for k, (said, reply) in enumerate(turns, 1):
            written += [(token, k, True) for token in said]
            if by_turn:
                rows.append((i, before, written))
                before, written = before + [token for token, *_ in written] + reply, []
            else:
                written += [(token, k, False) for token in reply]
        if not by_turn:
            rows.append((i, before, written))
    of = torch.tensor([0 if i == 2 else i for i, *_ in rows])
    ids, mask = pad_left([torch.tensor(before) for _, before, _ in rows])
    read = replace(batch.rows(of), input_ids=ids, attention_mask=mask)
    columns = [pad_right([torch.tensor([one[n] for one in row[2]]) for row in rows])[0] for n in range(3)]
    lived = columns[1] > 0
    nothing = torch.zeros_like(read.input_ids)
    counted, turn_ids = torch.cat([nothing > 0, columns[2] > 0], 1), torch.cat([nothing, columns[1]], 1)
    ends = torch.tensor([Ending.EOS if row[2][-1][0] == EOS else Ending.LIMIT for row in rows])
    joined = Sequences.join(read, columns[0], lived, loss_mask=counted, turn_ids=turn_ids, ending=ends)
    return replace(
        joined, prompts=batch, prompt_rows=of, on_policy=of >= 0, sampler_logp=-counted.float(),
        episodes=torch.tensor([i for i, *_ in rows]),
    ).in_prompt_order()  # fmt: skip


SHAPES = pytest.mark.parametrize("by_turn", [False, True])


def content(rows):
    """What the rows say, without padding."""
    names = ("input_ids", "loss_mask", "turn_ids", "sampler_logp")
    grids = [
        [line[mask].tolist() for line, mask in zip(getattr(rows, n), rows.attention_mask, strict=True)] for n in names
    ]
    episodes = [rows.episodes.tolist().index(number) for number in rows.episodes.tolist()]
    return [*grids, episodes, rows.prompt_rows.tolist(), rows.ending.tolist()]


@SHAPES
def test_replayed_rows_are_the_same(by_turn):
    rows, batch = rows_of(by_turn), prompts()
    rows = replace(rows, rewards=torch.tensor([2.0, math.nan] * 3)[: len(rows)])
    buffer = ReplayBuffer(100)
    buffer.add(rows, STEP)
    buffer.end_step(done=True)
    again = ReplayBuffer(100)
    again.restore([buffer.state()], 0)
    drawn = again.draw(batch, Step(2, 10)).in_prompt_order()
    if drawn.prompts.numbers.tolist() != [0, 1]:  # drawn in another order
        drawn = replace(drawn, prompts=batch, prompt_rows=1 - drawn.prompt_rows).in_prompt_order()
    assert content(drawn) == content(rows)
    assert torch.equal(drawn.rewards.nan_to_num(-1), rows.rewards.nan_to_num(-1))


@SHAPES
def test_completions_are_all_turns_and_the_judged_text_is_the_last(by_turn, models):
    rows = rows_of(by_turn)
    assert [ids.tolist() for ids in rows.completions()] == rows.completion_ids()
    said = [models.tokenizer.decode(ids) for ids in ([9], [7], [10, 11, 12])]
    last = sorted(set(rows.last_rows()))
    assert [rows.texts(models.tokenizer)[row] for row in last] == said
    assert rows.finished([EOS]).tolist() == [ending == Ending.EOS for ending in rows.ending.tolist()]


@SHAPES
def test_a_reward_of_the_environment_stays_and_the_task_judges_the_last_turn_of_others(by_turn, models):
    rows = rows_of(by_turn)
    of_first = rows.episodes == 0
    given = replace(rows, rewards=torch.where(of_first, 0.25, torch.tensor(math.nan)))
    for sequences, first in ((given, 0.25), (rows, 1.0)):
        rewards = rows.prompts.rewarded(sequences, models.tokenizer).rewards
        assert {(e, r) for e, r in zip(rows.episodes.tolist(), rewards.tolist(), strict=True)} == {
            (0, first), (1, 3.0), (2, 1.0)
        }  # fmt: skip


@SHAPES
def test_a_report_has_context_and_turns_apart(by_turn, models):
    rows = rows_of(by_turn)
    reports = row_reports(rows.prompts, rows, None, "Played", models.tokenizer)
    for row, report in enumerate(reports):
        assert report["prompt_ids"] + report["completion_ids"] == rows.input_ids[row][rows.attention_mask[row]].tolist()
        assert len(report["turn_ids"]) == len(report["completion_ids"])
        assert min(report["turn_ids"]) > 0


def test_an_episode_is_unfinished_once():
    rows = rows_of(by_turn=True)
    cut = replace(rows, ending=torch.where(rows.episodes == 2, int(Ending.LIMIT), rows.ending))
    for sequences, expected in ((rows, 1), (cut, 2)):
        stat = rollout_numbers([sequences], [EOS])["unfinished"]
        assert (float(stat.total), float(stat.weight)) == (expected, 3)


def test_replies_are_no_repetition_of_the_agent():
    batch = prompts()
    ids = torch.tensor([[2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4, 5]] * 2)
    turns = torch.tensor([[1] * 4 + [1] * 4 + [2] * 4] * 2)
    rows = Sequences.join(batch, ids, ids > 0)
    nothing = torch.zeros_like(batch.input_ids)
    rows = replace(rows, on_policy=rows.prompt_rows >= 0, turn_ids=torch.cat([nothing, turns], 1))
    agent = torch.cat([nothing > 0, torch.tensor([[True] * 4 + [False] * 4 + [True] * 4] * 2)], 1)
    assert rollout_numbers([replace(rows, loss_mask=agent)], [EOS])["repetition"].mean() == pytest.approx(0.5)


def test_parts_keep_their_episodes_apart():
    rows = rows_of(by_turn=True)
    plain = replace(rows.rows(torch.tensor([0])), turn_ids=None, episodes=None)
    whole = Sequences.concatenate([rows, plain, rows])
    names = whole.episodes.tolist()
    assert len(set(names)) == 7
    assert [names.count(name) for name in dict.fromkeys(names)] == [2, 3, 1, 1, 2, 3, 1]
    assert torch.equal(whole.turn_ids[len(rows)] > 0, whole.completion_mask[len(rows)])


def test_a_peer_is_no_turn_of_the_same_episode():
    rows = replace(rows_of(by_turn=True), rewards=torch.ones(6))
    assert [rows.episodes.tolist()[peer] if peer >= 0 else None for peer in Peer().peers(rows).tolist()] == [
        2, 2, 0, 0, 0, None
    ]  # fmt: skip


def test_another_prompt_comes_in_front_of_whole_episodes_only(models):
    rows = rows_of(by_turn=False)
    told = prompts().rows(rows.prompt_rows)
    moved = behind(told, rows)
    assert torch.equal(moved.episodes, rows.episodes)
    assert [line[mask].tolist() for line, mask in zip(moved.turn_ids, moved.completion_mask, strict=True)] == [
        line[mask].tolist() for line, mask in zip(rows.turn_ids, rows.completion_mask, strict=True)
    ]
    later = rows_of(by_turn=True)
    with pytest.raises(ConfigurationError, match="the agent has read more than the prompt"):
        behind(prompts().rows(later.prompt_rows), later)


@SHAPES
@pytest.mark.parametrize("aggregation", ["turn", "episode"])
def test_losses_against_dense_loops(by_turn, aggregation, models):
    rows = replace(rows_of(by_turn), rewards=torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])[: 6 if by_turn else 3])
    objectives = (Distill(aggregation=aggregation, divergence=ReverseKL()), OPD(aggregation=aggregation))
    for objective in objectives:
        total = objective.loss({objective.rollout: rows}, models, STEP).terms["loss"].total
        torch.testing.assert_close(
            total, dense_loss(objective, {objective.rollout: rows}, models, STEP), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("aggregation", ["token", "turn", "episode"])
@pytest.mark.parametrize("kind", [OPD, UniOPD, Distill])
def test_an_episode_trains_alike_in_one_row_and_in_a_row_of_each_turn(kind, aggregation, models):
    objective = kind(aggregation=aggregation, rollout=FromDataset(), temperature=1.0)
    gradients = []
    for by_turn in (False, True):
        rows = rows_of(by_turn)
        rows = replace(rows, rewards=(rows.episodes == 2).float())
        stat = objective.loss({objective.rollout: rows}, models, STEP).terms["loss"]
        gradients.append(torch.autograd.grad(stat.mean(), models.student.parameters(), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_weighting_sees_the_turn_of_each_token(models):
    seen = []

    class Watching(Distill):
        def per_token(self, rows):
            seen.append(rows.turn_ids)
            return super().per_token(rows)

    rows = rows_of(by_turn=False)
    objective = Watching(divergence=ReverseKL(), chunk_rows=4)
    objective.loss({objective.rollout: rows}, models, STEP)
    assert torch.equal(torch.cat(seen), rows.turn_ids[rows.loss_mask])
