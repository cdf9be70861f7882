"""Policy gradients across tokenizers: the teacher's log-probabilities, spread over the student's tokens."""

from dataclasses import replace

import pytest
import torch

from tests.objectives.two_tokenizers import STEP, close, logits_of, model_of, models_of, reading, update, written
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import OPD, SimpleOPD
from veto_pl.parts.contexts import Privileged
from veto_pl.rollouts import FromDataset

PLAIN = {"importance_cap": None}


@pytest.fixture(scope="module")
def models():
    return models_of("bytes", "sentence pieces")


def by_loops(objective, sequences, models):
    """The total, and the loss whose gradient is that of the policy-gradient term, from whole logits."""
    rows, units = reading(models, sequences)
    ids, theirs = sequences.token_ids(), rows.token_ids()
    student = (logits_of(models.student, sequences) / objective.temperature).log_softmax(-1)
    teacher = (logits_of(models.teacher, rows) / objective.temperature).log_softmax(-1)
    silent = {models.tokenizer.get_vocab().get(name) for name in objective.silent}
    value, loss = 0.0, 0.0
    for u in range(units.count):
        mine = [i for i, unit in enumerate(units.student.tolist()) if unit == u]
        other = [j for j, unit in enumerate(units.teacher.tolist()) if unit == u]
        if objective.units == "one_to_one" and (len(mine), len(other)) != (1, 1):
            continue
        if any(int(ids[i]) in silent for i in mine):
            continue
        gap = sum(float(teacher[j, theirs[j]]) for j in other) - sum(float(student[i, ids[i]].detach()) for i in mine)
        for i in mine:
            value -= gap / len(mine)
            loss = loss - gap / len(mine) * student[i, ids[i]]
    return value, loss


@pytest.mark.parametrize(
    "objective",
    [
        SimpleOPD(**PLAIN),
        SimpleOPD(units="minimal", chunk_rows=2, **PLAIN),
        SimpleOPD(units="minimal", temperature=0.7, silent=("Ġit", "Ġ+"), **PLAIN),
    ],
    ids=["one to one", "minimal", "silent"],
)
def test_value_and_gradient_are_those_of_plain_loops(objective, models):
    sequences = written(models)
    output, gradients = update(objective, sequences, models)
    value, loss = by_loops(objective, sequences, models)
    models.student.zero_grad()
    loss.backward()
    assert float(output.terms["loss"].total) == pytest.approx(value, rel=1e-4)
    assert float(output.terms["loss"].weight) == int(sequences.predictions.sum())
    for found, parameter in zip(gradients, models.student.parameters(), strict=True):
        close(found, parameter.grad)


@pytest.mark.parametrize("units", ["one_to_one", "minimal"])
@pytest.mark.parametrize("apart", [True, False], ids=["in its own ids", "in the student's"])
def test_with_one_tokenizer_it_is_opd(units, apart):
    models = models_of("bytes", "bytes")
    models = models if apart else replace(models, tokenizers={})
    sequences = written(models)
    one, gradients = update(SimpleOPD(units=units, **PLAIN), sequences, models)
    other, same = update(OPD(**PLAIN), sequences, replace(models, tokenizers={}))
    close(one.terms["loss"].total, other.terms["loss"].total)
    for found, wanted in zip(gradients, same, strict=True):
        close(found, wanted)


def test_a_silent_token_has_no_log_ratio_with_one_tokenizer_too(models):
    models = replace(models, teacher=model_of(models.tokenizer, 3).eval(), tokenizers={})
    sequences = written(models)
    quiet = sequences.token_ids() == models.tokenizer.get_vocab()["Ġ+"]
    output, _ = update(SimpleOPD(silent=("Ġ+", "no such token"), **PLAIN), sequences, models)
    assert quiet.any()
    assert float(output.metrics["aligned"].mean()) == pytest.approx(1 - float(quiet.float().mean()))


def test_it_is_trained_on_samples_with_importance_weights(models):
    sequences = written(models)
    guesses = torch.full(sequences.loss_mask.shape, -2.0).masked_fill(~sequences.loss_mask, 0.0)
    output, _ = update(SimpleOPD(), replace(sequences, sampler_logp=guesses), models)
    assert output.terms["loss"].total.isfinite()
    with pytest.raises(ConfigurationError, match="sampler's log-probabilities"):
        update(SimpleOPD(), sequences, models)


def test_a_teacher_that_cannot_read_the_same_text_is_refused(models, monkeypatch):
    sequences = written(models)
    with pytest.raises(ConfigurationError, match=r"`SimpleOPD\.context` is `Privileged`"):
        SimpleOPD(context=Privileged("{prompt}!")).loss({SimpleOPD().rollout: sequences}, models, STEP)
    monkeypatch.setattr(FromDataset, "stored_teacher", True)
    with pytest.raises(ConfigurationError, match="`SimpleOPD` needs a live teacher"):
        SimpleOPD(rollout=FromDataset())
