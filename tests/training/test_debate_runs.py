"""Runs with debates: what is measured, what is shown, and what is refused before anything is loaded."""

import json

import pytest
import torch

from tests.training.test_teachers import NAMES, WORDS, checked, fit, module_of, task_of
from veto_pl.callbacks import SampleTable
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import MADOPD, Sum, Veto
from veto_pl.parts.panels import OneTeacher
from veto_pl.rollouts import Debate, FromStudent, Sampling
from veto_pl.testing.tiny import tiny_source

SAMPLED = FromStudent(Sampling(max_new_tokens=5))
FORMATS = {"first": "a>{state}", "following": "{debate}{state}", "reading": "{debate}b>{state}", "entry": "{text}>"}
DEBATE = Debate(sampling=Sampling(max_new_tokens=5), keep_cut=True, **FORMATS)
OBJECTIVE = MADOPD(rollout=SAMPLED, panel=DEBATE)


def test_weights_failures_and_texts_are_seen(tmp_path):
    module = module_of(OBJECTIVE)
    runner = fit(module, tmp_path, callbacks=[SampleTable(number=3, show=False)])
    metrics = runner.callback_metrics
    for name in NAMES:
        assert {f"train/{name}/{one}" for one in ("weight", "left_out", "unsure")} <= set(metrics)
        assert 0 < float(metrics[f"train/{name}/weight"]) < 1
    assert sum(float(metrics[f"train/{name}/weight"]) for name in NAMES) == pytest.approx(1, abs=1e-5)
    (path,) = tmp_path.rglob("samples.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 3
    for row, word in zip(rows, WORDS, strict=False):
        assert row["prompt"] == f"{word}>"
        assert set(row["said"]) == set(NAMES)
        for name, notes in row["said"].items():
            (note,) = notes
            assert note["weight"] == pytest.approx(row["teachers"].get(name, 0.0), abs=1e-5)
            assert "out" in note or len(note["texts"]) == 2


def test_a_debate_may_be_a_term_of_a_sum(tmp_path):
    terms = {"debate": OBJECTIVE, "plain": Veto(rollout=SAMPLED, panel=OneTeacher("maths"))}
    metrics = fit(module_of(Sum(terms=terms)), tmp_path).callback_metrics
    print(sorted(metrics))
    assert "train/debate/maths/weight" in metrics


def test_no_rounds_train_like_together_to_the_bit(tmp_path):
    weights = []
    for panel in (Debate(rounds=0), Debate(tuple(NAMES), rounds=0)):
        module = module_of(MADOPD(rollout=SAMPLED, panel=panel))
        fit(module, tmp_path)
        weights.append([p.detach().clone() for p in module.student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_debate_that_no_position_holds_is_refused_before_the_run(tmp_path):
    short = {"maths": tiny_source(seed=1, max_position_embeddings=40), "code": tiny_source(seed=2)}
    with pytest.raises(ConfigurationError, match=r"max_new_tokens`: given 5, with which a debate may have \d+ tokens, "
                       r"expected less than the 40 positions of `model\.teachers\.maths`"):  # fmt: skip
        checked(module_of(OBJECTIVE, teachers=short), task_of(tmp_path))


def test_all_who_debate_are_used_and_nobody_is_told_otherwise(tmp_path):
    told = checked(module_of(OBJECTIVE), task_of(tmp_path))
    assert not any("teachers" in one for one in told)
