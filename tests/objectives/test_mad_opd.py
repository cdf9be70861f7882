"""MAD-OPD against plain loops, in single answers and turn by turn."""

from dataclasses import replace

import pytest
import torch

from tests.rollouts.debates import STEP, Scripted, models_of, read, rollout_of, scripted
from veto_pl.environments import TryAgain
from veto_pl.objectives import MADOPD
from veto_pl.parts.divergences import GeneralizedJSD, ReverseKL
from veto_pl.rollouts import FromDataset, FromStudent, Played, Sampling
from veto_pl.testing.tiny import prompt_batch

SAID = {"alpha": "ac90", "beta": "bc30"}
DEBATE = "11ac90>12bc30>21ac90>22bc30>"


def log_probabilities(model, ids, count, vocabulary):
    """Of the last `count` tokens, by one pass without padding."""
    logits = model.model.eval()(torch.tensor([ids])).logits[0, -count - 1 : -1, :vocabulary]
    return logits.double().log_softmax(-1)


def jsd(target, student, beta):
    """The generalised JSD of two distributions, id by id; at 1 the reverse KL."""
    t, s = target.exp(), student.exp()
    if beta == 1:
        return (s * (student - target)).sum()
    mixture = beta * t + (1 - beta) * s
    return beta * (t * (target - mixture.log())).sum() + (1 - beta) * (s * (student - mixture.log())).sum()


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_loss_by_plain_loops(beta):
    """Rows, teachers and tokens one by one, in float64, with the weights of the paper's softmax."""
    models = models_of()
    for model in (models.student, *models.teachers.values()):
        model.double()
    objective = MADOPD(rollout=FromDataset(), panel=scripted(models, SAID), beta=beta)
    rows = rollout_of(models)
    output = objective.loss({objective.rollout: rows}, models, STEP)
    models.student.zero_grad()
    output.terms["loss"].total.backward()
    gradient = [p.grad.clone() for p in models.student.parameters()]
    models.student.zero_grad()
    shares = torch.tensor([0.9, 0.3], dtype=torch.float64).softmax(0)
    tokenizer, size, total = models.tokenizer, models.student.vocab_size, 0.0
    for word in ("abc", "d", "efgh", "ka"):
        answer = [*tokenizer.encode(word[::-1]), tokenizer.eos_token_id]
        student = log_probabilities(models.student, [*tokenizer.encode(f"{word}>"), *answer], len(answer), size)
        for share, teacher in zip(shares, models.teachers.values(), strict=True):
            read = [*tokenizer.encode(f"{DEBATE}o>{word}>"), *answer]
            told = log_probabilities(teacher, read, len(answer), size).detach()
            losses = [jsd(t, s, beta) for t, s in zip(told, student, strict=True)]
            total = total + share * sum(losses) / len(losses)
    total.backward()
    torch.testing.assert_close(output.terms["loss"].total.double(), total, rtol=1e-6, atol=1e-8)
    assert output.terms["loss"].weight == 4
    for found, parameter in zip(gradient, models.student.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-7)  # shares of tokens are float32


def test_the_papers_defaults():
    objective = MADOPD()
    assert objective.divergence == GeneralizedJSD(0.5)
    assert MADOPD(beta=1.0).divergence == ReverseKL()
    assert (objective.aggregation, objective.panel.rounds, objective.panel.temperature) == ("sequence", 2, 1.0)
    assert objective.rollout == FromStudent(Sampling(temperature=0.7, top_p=0.8, top_k=20))
    sampling = objective.panel.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 20)


PLAYED = Played(TryAgain(said="no>"), Sampling(max_new_tokens=4, num_completions=2, stop=tuple("aeio")), max_turns=3)


def episodes_of(models, source=PLAYED):
    batch = prompt_batch(models, ["abc>", "d>"], ["cba", "d"])
    return source(batch, models, STEP)


def test_every_turn_has_a_debate_behind_what_was_said_before():
    models = models_of()
    panel = scripted(models, SAID)
    rows = episodes_of(models)
    found = read(panel, models, rows)
    assert rows.turn_ids.max() > 1, "the case has several turns"
    calls = panel.engine.calls
    assert len(calls) == 4
    states, told, numbers = [], calls[0][1], calls[0][2]
    spans = []
    for row in range(len(rows)):
        for turn in rows.turn_ids[row][rows.loss_mask[row]].unique().tolist():
            places = (rows.turn_ids[row] == turn) & rows.loss_mask[row]
            start, stop = places.nonzero()[0, 0], places.nonzero()[-1, 0] + 1
            before = rows.input_ids[row, :start][rows.attention_mask[row, :start]]
            states.append(models.tokenizer.decode(before, skip_special_tokens=True))
            spans.append((row, turn, rows.input_ids[row, start:stop].tolist()))
    assert told == [f"p>{state}" for state in states]
    assert any("no>" in text for text in told)
    assert len(set(numbers)) == len(numbers) == len(spans)
    for one in found.values():
        read_rows = one.sequences
        assert len(read_rows) == len(spans)
        for row, (_, _, ids) in enumerate(spans):
            assert read_rows.input_ids[row][read_rows.loss_mask[row]].tolist() == ids
        prefix = models.tokenizer.decode(read_rows.input_ids[0][read_rows.attention_mask[0] & ~read_rows.loss_mask[0]])
        assert prefix == f"{DEBATE}o>{states[0]}"
        assert one.places.tolist() == list(range(int(rows.loss_mask.sum())))
        said = [(row, note["turn"]) for row, notes in enumerate(one.said) for note in notes]
        assert said == [(row, turn) for row, turn, _ in spans]


def test_turns_weigh_alike_and_each_has_the_weights_of_its_debate():
    """A teacher that is silent in later turns reads the first turns alone; the loss is the mean over turns."""
    models = models_of()
    alpha = models.teachers["alpha"]
    engine = Scripted(lambda model, text: ("" if model is alpha and "no>" in text else "c50", True))
    objective = MADOPD(rollout=PLAYED, panel=scripted(models, SAID, engine=engine), aggregation="turn")
    rows = episodes_of(models)
    found = read(objective.panel, models, rows)
    weights = {name: [note["weight"] for notes in one.said for note in notes] for name, one in found.items()}
    turns = [note["turn"] for notes in found["alpha"].said for note in notes]
    assert weights["alpha"] == [0.5 if turn == 1 else 0.0 for turn in turns]
    assert weights["beta"] == [0.5 if turn == 1 else 1.0 for turn in turns]
    output = objective.loss({PLAYED: rows}, models, STEP)
    assert output.terms["loss"].weight == len(turns)
    assert output.metrics["unread"].total == 0


def test_a_turn_of_an_episode_does_not_depend_on_the_others():
    models = models_of()
    panel = replace(scripted(models, SAID), engine=MADOPD().panel.engine, keep_cut=True)
    batch = prompt_batch(models, ["abc>", "d>"], ["cba", "d"])
    whole = read(panel, models, PLAYED(batch, models, STEP))
    alone = read(panel, models, PLAYED(batch.rows(torch.tensor([1])), models, STEP))
    assert alone["alpha"].said == whole["alpha"].said[-len(alone["alpha"].said) :]
