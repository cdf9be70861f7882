"""Teachers that are one before there is a loss: mixtures, and experts' shifts of an anchor."""

from dataclasses import dataclass, replace

import pytest
import torch

from tests.objectives.test_panels import STEP, Wrong, assert_alike, batch_of, float64, update
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.own_ends import Ends
from veto_pl.metrics.agreement import ReverseKL as MeasuredKL
from veto_pl.metrics.agreement import StudentEntropy
from veto_pl.objectives import OPD, Distill, ShiftMOPD
from veto_pl.parts.contexts import SameText
from veto_pl.parts.divergences import GeneralizedJSD, ReverseKL
from veto_pl.parts.panels import OneTeacher, Shifted, Together
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.testing.tiny import tiny_models
from veto_pl.training.evaluation import Evaluation

SAMPLED = FromStudent(Sampling(max_new_tokens=4))
KINDS = {
    "added": Distill(divergence=GeneralizedJSD(0.3), rollout=FromDataset()),
    "hot": Distill(divergence=ReverseKL(), rollout=FromDataset(), aggregation="sequence", temperature=2.0),
    "policy": OPD(rollout=SAMPLED, discount=0.9),
}


def models_of():
    """A teacher under two names, and two others."""
    plain = tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    other, third = (tiny_models("gpt2", teacher_seed=seed).teacher for seed in (5, 6))
    return replace(plain, teachers={"maths": plain.teacher, "code": plain.teacher, "other": other, "third": third})


@pytest.fixture(scope="module")
def models():
    return models_of()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "panel",
    [
        Together({"maths": 0.3, "code": 0.7}, combine="target"),
        Together({"teacher": 2.0, "other": 0.0}, combine="target"),
        Shifted(),
        Shifted({"other": "other"}),
        Shifted({"teacher": "other"}, anchor="other"),
    ],
    ids=["the same twice", "one hot", "no expert", "an expert that has learned nothing", "an expert of the anchor"],
)
def test_limits_are_one_teacher(kind, panel, models):
    batch = batch_of(models)
    once = update(KINDS[kind], models, batch)
    assert_alike(once, update(replace(KINDS[kind], panel=panel), models, batch, once[2]), 1e-4)


def test_a_mixture_is_another_loss_than_a_mean_of_losses(models):
    batch = batch_of(models)
    weights = {"teacher": 0.4, "other": 0.6}
    added, mixed = (
        update(replace(KINDS["added"], panel=Together(weights, combine=how)), models, batch)
        for how in ("loss", "target")
    )
    assert mixed[0].terms["loss"].total < added[0].terms["loss"].total, "a divergence is convex in its target"
    assert mixed[0].metrics["kl"].total < added[0].metrics["kl"].total


def pooled(panel, models, ids, counted):
    """The log-probabilities of the pooled teacher, [n, V], from whole logits."""
    said = {
        name: model.model(ids).logits[0, counted, : model.vocab_size].detach()
        for name, model in models.named_teachers.items()
    }
    if isinstance(panel, Together):
        total = sum(panel.weights.values())
        parts = [weight / total * said[name].softmax(-1) for name, weight in panel.weights.items()]
        return sum(parts).log()
    shifts = [said[expert] - said[base] for expert, base in panel.shifts.items()]
    return (said[panel.anchor] + sum(shifts)).log_softmax(-1)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize(
    "panel",
    [
        Together({"teacher": 3.0, "other": 1.0, "third": 2.0}, combine="target"),
        Shifted({"other": "third", "maths": "third"}),
    ],
    ids=["mixture", "shifted"],
)
def test_pooled_teachers_against_plain_loops(panel, aggregation):
    """Token by token, from logits of single rows without padding, in float64."""
    models = float64(models_of())
    objective = Distill(divergence=GeneralizedJSD(0.3), rollout=FromDataset(), aggregation=aggregation, panel=panel)
    output, gradient, rollouts = update(objective, models, batch_of(models))
    models.student.zero_grad()
    total, read = 0.0, rollouts[objective.rollout]
    for ids, there, counts in zip(read.input_ids, read.attention_mask, read.loss_mask, strict=True):
        row, counted = ids[there][None], counts[there].nonzero()[:, 0] - 1
        student = models.student.model(row).logits[0, counted, : models.student.vocab_size].log_softmax(-1)
        teacher = pooled(panel, models, row, counted)
        for place in range(len(counted)):
            share = 1 / len(counted) if aggregation == "sequence" else 1.0
            total = total + share * objective.divergence(student[place][None], teacher[place][None])[0]
    total.backward()
    torch.testing.assert_close(output.terms["loss"].total, total, rtol=1e-9, atol=1e-9)
    expected = torch.cat([p.grad.flatten() for p in models.student.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_shift_mopd_against_plain_loops():
    """The log-ratio to the shifted anchor minus its mean over all tokens; a mean over rows of means over tokens."""
    models = float64(models_of())
    panel = Shifted({"other": "third"})
    objective = ShiftMOPD(panel=panel, rollout=FromDataset(), importance_cap=None)
    _, gradient, rollouts = update(objective, models, batch_of(models))
    models.student.zero_grad()
    read, found = rollouts[objective.rollout], []
    for ids, there, counts in zip(read.input_ids, read.attention_mask, read.loss_mask, strict=True):
        row, counted = ids[there][None], counts[there].nonzero()[:, 0] - 1
        student = models.student.model(row).logits[0, counted, : models.student.vocab_size].log_softmax(-1)
        teacher, tokens = pooled(panel, models, row, counted), row[0, counted + 1]
        own, said = (logp.gather(1, tokens[:, None])[:, 0] for logp in (student, teacher))
        found.append((own, (said - own).detach()))
    mean = torch.cat([ratio for _, ratio in found]).mean()
    sum(-((ratio - mean) * own).mean() for own, ratio in found).backward()
    expected = torch.cat([p.grad.flatten() for p in models.student.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_weights_of_a_mixture_may_follow_a_schedule(models):
    batch = batch_of(models)
    moving = Together({"teacher": Linear(1.0, 0.0), "other": 0.2}, combine="target")
    fixed = Together({"teacher": 0.8, "other": 0.2}, combine="target")
    one, two = (update(replace(KINDS["added"], panel=panel), models, batch) for panel in (moving, fixed))
    assert_alike(one, two, 1e-6)


@pytest.mark.parametrize("combine", ["loss", "target"])
def test_a_validation_weighs_teachers_as_training_does(combine, models):
    """The reverse KL of a validation is the loss of training by it on the same rows; the student counts once."""
    panel = Together({"teacher": 0.8, "other": 0.2}, combine=combine)
    metric, entropy = MeasuredKL(), StudentEntropy()
    sampling = Sampling(temperature=0.0, max_new_tokens=5)
    evaluation = Evaluation.sample(batch_of(models), models, sampling, STEP, panel=panel).update([metric, entropy])
    objective = Distill(divergence=ReverseKL(), rollout=SAMPLED, panel=panel)
    with torch.no_grad():
        output = objective.loss({SAMPLED: evaluation.sequences}, models, STEP)
        plain = replace(objective, panel=OneTeacher()).loss({SAMPLED: evaluation.sequences}, models, STEP)
    assert float(metric.compute()) == pytest.approx(float(output.terms["loss"].mean()), rel=1e-4)
    assert float(entropy.compute()) == pytest.approx(float(plain.metrics["entropy"].mean()), rel=1e-4)
    assert float(metric.weight) == pytest.approx(float(output.terms["loss"].weight), rel=1e-6)


def test_no_rows_are_no_trouble(models):
    rows = FromDataset()(batch_of(models), models, STEP).rows(torch.zeros(0, dtype=torch.int64))
    objective = replace(KINDS["added"], panel=Together(combine="target"))
    output = objective.loss({objective.rollout: rows}, models, STEP)
    assert float(output.terms["loss"].total.detach()) == 0
    output.terms["loss"].total.backward()


@dataclass(frozen=True)
class Part(Wrong):
    """Pools readings of some tokens."""

    pool = "mixture"


def test_what_cannot_be_pooled_is_refused(models):
    for panel, message in (
        (Part(places=3), "gives readings of some of the tokens"),
        (Part(weight=0.5), "add up to 0.5"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            update(replace(KINDS["added"], panel=panel), models, batch_of(models))


def test_teachers_that_end_by_different_ids_are_no_mixture(models):
    @dataclass(frozen=True)
    class Ending(SameText):
        def ends(self, models):
            return Ends((1,), (2,)) if models.teacher_name == "other" else None

    panel = Together({"teacher": 1.0, "other": 1.0}, combine="target")
    with pytest.raises(
        ConfigurationError, match="they end their texts by different ids: `teacher` by None, `other` by"
    ):
        update(replace(KINDS["added"], panel=panel, context=Ending()), models, batch_of(models))


def test_an_anchor_alone_is_told():
    (mistake,) = Shifted().requirements(None, "model.objective.init_args.panel")
    assert not mistake.fatal
    assert not list(Shifted({"a": "b"}).requirements(None, ""))
    assert Shifted({"a": "b", "c": "b"}).asks(()) == ("teacher", "a", "c", "b")
