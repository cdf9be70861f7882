"""Evaluations play whole episodes: what is measured of them, turn by turn, against loops over their rows."""

import json
from dataclasses import replace

import lightning as L
import pytest
import torch

from tests.rollouts.test_played import Says, never, silent
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import SampleTable
from veto_pl.data import JsonLines
from veto_pl.environments import TryAgain
from veto_pl.functional.divergences import reverse_kl
from veto_pl.metrics import Accuracy, FailedTurns, LateTurns, ReverseKL, TurnKL, Turns, default_metrics
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import OPD, SFT, TCOD, Distill
from veto_pl.rollouts import FromStudent, Played, Sampling
from veto_pl.rollouts.environment_calls import _warned
from veto_pl.seams import Reply, Step
from veto_pl.testing.rows import tiny_prompts
from veto_pl.testing.tiny import ALPHABET, tiny_models, tiny_source
from veto_pl.training.evaluation import Evaluation
from veto_pl.training.measured import validation_metrics

STEP = Step(3, 10, seed=-1)
SAMPLING = Sampling(max_new_tokens=8, num_completions=2, stop=tuple("acegikmo"))
TURNS = 4


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def again(turn, seed):
    """Of some episodes the first turn is the last, and of some a turn fails."""
    return Reply(({"role": "user", "content": "no>"},), done=seed % 3 == 0, failed=turn == 2)


def evaluated(models, environment, metrics=(), **settings):
    playing = Played(environment, SAMPLING, max_turns=TURNS, max_tokens=90, timeout=20.0, **settings)
    return Evaluation.sample(tiny_prompts(models), models, SAMPLING, STEP, playing=playing).update(
        metrics, annotate=True
    )


def test_a_silent_environment_and_one_turn_are_single_answers_to_the_bit(models):
    """Every metric of the default set that single answers have, and every row."""
    found = []
    for playing in (None, Played(Says(silent), max_turns=1)):
        metrics = validation_metrics(None, SAMPLING, with_teacher=True)
        evaluation = Evaluation.sample(tiny_prompts(models), models, SAMPLING, STEP, playing=playing)
        evaluation.update(metrics.values())
        rows = [{name: value for name, value in row.items() if name != "dialogue"} for row in evaluation.rows()]
        found.append(({name: float(metric.compute()) for name, metric in metrics.items()}, rows))
    assert found[0] == found[1]


def test_numbers_of_episodes_against_loops(models):
    metrics = {metric.name: metric for metric in (Turns(), FailedTurns(), Accuracy())}
    evaluation = evaluated(models, Says(again, lambda: 1.0), metrics.values())
    rows, generations = evaluation.sequences, evaluation.generations
    last = [int(turns.max()) for turns in rows.turn_ids]
    assert len(set(last)) > 1
    assert generations.turns.flatten().tolist() == last
    assert float(metrics["turns"].compute()) == pytest.approx(sum(last) / len(last))
    failed = int(rows.failed_turns.sum())
    assert failed > 0
    assert float(metrics["failed_turns"].compute()) == pytest.approx(failed / sum(last))
    assert float(metrics["accuracy"].compute()) == 1.0
    own = [ids[counts].tolist() for ids, counts in zip(rows.input_ids, rows.loss_mask, strict=True)]
    assert generations.tokens == own
    assert generations.rewards.shape == generations.turns.shape == (4, 2)


def kl_by_turn(models, rows):
    """{turn: [KL(student || teacher) of each token]}, in float64, one row at a time."""
    found = {}
    for ids, there, counts, turns in zip(
        rows.input_ids, rows.attention_mask, rows.loss_mask, rows.turn_ids, strict=True
    ):
        with torch.no_grad():
            student, teacher = (
                model.model(ids[there][None]).logits[0, :, : model.vocab_size].double().log_softmax(-1)
                for model in (models.student, models.teacher)
            )
        places = counts[there].nonzero()[:, 0].tolist()
        for place in places:
            value = float(reverse_kl(student[place - 1], teacher[place - 1]))
            found.setdefault(int(turns[there][place]), []).append(value)
    return found


def test_the_kl_of_each_turn_against_loops(models):
    members = TurnKL(TURNS + 2).members(1)
    whole = ReverseKL()
    evaluation = evaluated(models, Says(again), [*members, whole])
    expected = kl_by_turn(models, evaluation.sequences)
    assert len(expected) > 1
    for turn, metric in enumerate(members, 1):
        values = expected.get(turn, [])
        assert metric.name == f"turn_{turn}/reverse_kl"
        assert float(metric.weight) == len(values)
        assert float(metric.compute()) == pytest.approx(sum(values) / max(len(values), 1), rel=1e-4)
    assert sum(float(metric.total) for metric in members) == pytest.approx(float(whole.total), rel=1e-6)


@pytest.mark.parametrize("objective", [OPD, Distill])
def test_training_logs_the_same_turn_by_turn(models, objective):
    source = Played(Says(again), SAMPLING, max_turns=TURNS, max_tokens=90)
    one = objective(rollout=source)
    rows = source(tiny_prompts(models), models, STEP)
    metrics = one.loss({source: rows}, models, STEP).metrics
    expected = kl_by_turn(models, rows)
    for turn in range(1, TURNS + 1):
        stat, values = metrics[f"turn_{turn}/kl"], expected.get(turn, [])
        assert float(stat.weight) == len(values)
        assert float(stat.total) == pytest.approx(sum(values), rel=1e-4, abs=1e-6)
    short = replace(source, environment=Says(silent))
    others = replace(one, rollout=short).loss({short: short(tiny_prompts(models), models, STEP)}, models, STEP)
    assert others.metrics.keys() == metrics.keys(), "on whatever rank, however long its episodes"
    assert not any("turn_" in name for name in objective(rollout=FromStudent(SAMPLING)).loss(
        {FromStudent(SAMPLING): FromStudent(SAMPLING)(tiny_prompts(models), models, STEP)}, models, STEP
    ).metrics)  # fmt: skip


def test_a_dialogue_is_told_line_by_line_with_what_counts(models):
    evaluation = evaluated(models, Says(again))
    for place, row in enumerate(evaluation.rows()):
        lines = row["dialogue"]
        own = [line for line in lines if line.get("counts")]
        assert [line["turn"] for line in own] == list(range(1, int(evaluation.generations.turns.flatten()[place]) + 1))
        assert {line["role"] for line in own} == {"assistant"}
        ends = evaluation.generations.finished.flatten()[place]
        assert [line["turn"] for line in own if "cut" in line] == ([] if ends else [own[-1]["turn"]])
        failed = [line["turn"] for line in own if "problem" in line]
        assert failed == [2] * int(evaluation.generations.failed_turns.flatten()[place])  # a cut one is not carried out
        assert lines[0] == {"role": "user", "content": lines[0]["content"]}
        assert json.loads(json.dumps(row)) == row
        told = evaluation.annotated(place)
        assert len(told["tokens"]) == len(told["turns"]) == len(told["reverse_kl"])
        for line in own:  # the template shows a stop string, which is a part of the turn
            texts = [text for text, turn in zip(told["tokens"], told["turns"], strict=True) if turn == line["turn"]]
            assert "".join(texts) in line["content"] or "<" in line["content"]


def broken(kind):
    def say(turn, seed):
        if turn == 2 and kind == "raises":
            raise BrokenPipeError("the process of the environment is gone")
        if turn == 2 and kind == "floods":
            return Reply(({"role": "tool", "content": "<eos>\x00" + '<tool_call>{"name": "f"}</tool_call>' * 30_000},))
        return Reply(({"role": "user", "content": "no>"},))

    return Says(say, closed=[])


@pytest.mark.parametrize("kind", ["raises", "floods"])
def test_an_environment_that_fails_is_a_failed_turn_of_the_evaluation(models, kind):
    _warned.clear()
    metrics = {metric.name: metric for metric in default_metrics(2, TURNS)}
    environment = broken(kind)
    if kind == "raises":
        with pytest.warns(UserWarning, match="`reply` raised BrokenPipeError"):
            evaluation = evaluated(models, environment, metrics.values(), longest_reply=20)
    else:
        evaluation = evaluated(models, environment, metrics.values(), longest_reply=20)
        assert max(len(line["content"]) for row in evaluation.rows() for line in row["dialogue"]) < 80
    assert all(torch.isfinite(metric.compute()) for metric in metrics.values())
    failed = [line for row in evaluation.rows() for line in row["dialogue"] if "problem" in line]
    assert {line["problem"].split(":")[0] for line in failed} == (
        {"raised BrokenPipeError"} if kind == "raises" else set()
    )
    assert (float(metrics["failed_turns"].compute()) > 0) == (kind == "raises")
    replies = evaluation.sequences.completion_mask & ~evaluation.sequences.loss_mask
    assert replies.any()
    assert len(environment.closed) == 8


def test_what_comes_too_late_is_counted(models):
    _warned.clear()
    late = LateTurns()
    playing = Played(Says(lambda turn, seed: never(turn, seed) if seed % 2 else Reply()), timeout=0.3)
    with pytest.warns(UserWarning, match=r"gave no answer within 0.3 s"):
        evaluation = Evaluation.sample(tiny_prompts(models), models, SAMPLING, STEP, playing=playing)
    evaluation.update([late])
    counts = evaluation.generations.late_turns
    assert 0 < int(counts.sum()) < counts.numel()
    assert float(late.compute()) == pytest.approx(float(counts.sum() / evaluation.generations.turns.sum()))


def test_a_reward_that_fails_is_no_success(models):
    """The task would find some of these answers right."""
    _warned.clear()
    with pytest.warns(UserWarning, match="is worth 0"):
        evaluation = evaluated(models, Says(silent, lambda: 1 / 0))
    assert (evaluation.generations.rewards == 0).all()


def test_curricula_are_evaluated_on_whole_episodes():
    short = Sampling(max_new_tokens=4)
    objective = TCOD(environment=TryAgain(), sampling=short, max_turns=5, max_tokens=64, begin_at="back")
    module = DistillationModule(objective, tiny_source(), tiny_source(seed=1), CharacterTokenizer(ALPHABET))
    playing = module.playing.answering(Sampling(max_new_tokens=99), None)
    assert (playing.depth, playing.begin_at, playing.max_turns) == (None, "front", 5)
    assert (playing.sampling.max_new_tokens, playing.max_tokens) == (99, 99)
    assert [f"turn_{k}/reverse_kl" in module.validation_metrics for k in (1, 5, 6)] == [True, True, False]
    plain = DistillationModule(SFT(), tiny_source(), tokenizer=CharacterTokenizer(ALPHABET))
    assert plain.playing is None
    assert "turns" not in plain.validation_metrics
    named = Played(TryAgain(), max_turns=2)
    other = DistillationModule(SFT(), tiny_source(), tokenizer=CharacterTokenizer(ALPHABET), evaluation_rollout=named)
    assert other.playing is named
    assert "turns" in other.validation_metrics


def test_a_run_validates_episodes_and_keeps_their_dialogues(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{a}>", "completion": a}) + "\n" for a in "abcdefgh"))
    source = Played(TryAgain(said="no>"), SAMPLING, max_turns=3, max_tokens=60)
    module = DistillationModule(OPD(rollout=source, aggregation="turn"), tiny_source(), tiny_source(seed=9),
                                CharacterTokenizer(ALPHABET), evaluation=SAMPLING)  # fmt: skip
    data = PromptDataModule(JsonLines(train=str(rows), validation=str(rows)), batch_size=4, max_prompt_tokens=8,
                            max_completion_tokens=8)  # fmt: skip
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        max_steps=2, enable_checkpointing=False, num_sanity_val_steps=0,
                        callbacks=[SampleTable(number=3)], default_root_dir=str(tmp_path))  # fmt: skip
    trainer.fit(module, data)
    logged = trainer.callback_metrics
    assert 1 < float(logged["validation/turns"]) <= 3
    assert float(logged["train/played_turns"]) == pytest.approx(8 * float(logged["train/turns"]))
    assert {f"validation/turn_{k}/reverse_kl" for k in (1, 2, 3)} <= logged.keys()
    samples = [json.loads(line) for line in next(tmp_path.rglob("samples.jsonl")).read_text().splitlines()]
    assert len(samples) == 3
    assert all(one["dialogue"][-1].get("turn", 0) >= 1 for one in samples)
    assert "assistant: " in capsys.readouterr().out


def test_a_batch_without_prompts_has_no_episodes(models):
    """As on a rank that has fewer batches than others."""
    metrics = default_metrics(2, TURNS)
    nobody = tiny_prompts(models).rows(torch.zeros(0, dtype=torch.int64))
    playing = Played(Says(again), SAMPLING, max_turns=TURNS, max_tokens=90)
    evaluation = Evaluation.sample(nobody, models, SAMPLING, STEP, playing=playing).update(metrics, annotate=True)
    assert evaluation.rows() == []
    assert evaluation.generations.turns.shape == (0, 2)
    assert all(float(metric.weight) == 0 for metric in metrics)
