"""Panels with teachers that tell scores: one that tells all is the model that it tells of, for losses and gradients."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from tests.objectives.test_panels import STEP, batch_of, update
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.objectives import OPD, Distill, ExOPD, ResOPD, Sum, Veto
from veto_pl.objectives.told_readings import comparable, with_answers
from veto_pl.parts.divergences import ReverseKL
from veto_pl.parts.panels import OneTeacher, Routed, Together
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Answers, ScoreSource
from veto_pl.testing.tiny import tiny_models

SAMPLED = FromStudent(Sampling(temperature=1.0, max_new_tokens=5))
REVERSE = Distill(rollout=SAMPLED, divergence=ReverseKL())


@dataclass(frozen=True, eq=False)
class Teller(ScoreSource):
    """Tells what a model says of every id.

    Args:
        model: of whom.
        silent: the first token of rows that it does not answer.
        k: likeliest ids; None for all but one.
        asked: gets the number of rows of each call.
    """

    model: Any
    silent: int | None = None
    k: int | None = None
    asked: list[int] = field(default_factory=list)

    def of_nothing(self) -> TopKScores:
        return TopKScores.uniform((0,), self.k or self.model.vocab_size - 1, sampled=True)

    def __call__(self, sequences, tokenizer):
        self.asked.append(len(sequences))
        k = self.k or self.model.vocab_size - 1
        with torch.no_grad():
            logp = self.model(sequences, lambda hidden, model: model.project(hidden)[0]).log_softmax(-1)
        told = TopKScores.uniform(tuple(sequences.input_ids.shape), k, sampled=True)
        row, place = sequences.tokens()[1], sequences.prediction_index % sequences.predictions.shape[1]
        ids = logp.topk(k).indices
        sampled = logp.gather(1, sequences.token_ids()[:, None])[:, 0]
        told[row, place + 1] = TopKScores(ids, top_k_with_tail(logp, ids), sampled_logp=sampled)
        first = sequences.input_ids.gather(1, sequences.attention_mask.int().argmax(1, keepdim=True))[:, 0]
        return Answers(told, first == (-1 if self.silent is None else self.silent))


@pytest.fixture(scope="module")
def models():
    """Three models as teachers."""
    plain = tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    others = {name: tiny_models("gpt2", teacher_seed=seed).teacher for name, seed in (("maths", 5), ("code", 6))}
    return replace(plain, teachers=others, reference=plain.student)


def told_by(models, *names, **settings):
    """The same, where some of the teachers tell scores."""
    tellers = {name: Teller(models.teacher_named(name), **settings) for name in names}
    kept = {name: model for name, model in models.teachers.items() if name not in names}
    return replace(models, teacher=None if "teacher" in names else models.teacher, teachers=kept, tellers=tellers)


WEIGHED = Together({"teacher": 1.0, "maths": 3.0, "code": 2.0})
PANELS = {"routed": Routed(), "together": WEIGHED, "one": OneTeacher("code")}
OBJECTIVES = {
    "reverse": REVERSE,
    "veto": Veto(rollout=SAMPLED),
    "opd": OPD(rollout=SAMPLED),
    "exopd": ExOPD(rollout=SAMPLED),
    "sequence": replace(REVERSE, aggregation="sequence"),
}


def alike(one, other):
    for name, stat in one[0].terms.items():
        torch.testing.assert_close(other[0].terms[name].total, stat.total, rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(other[0].terms[name].weight, stat.weight)
    torch.testing.assert_close(other[1], one[1], rtol=1e-3, atol=2e-4 * float(one[1].abs().max()))


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_teacher_that_tells_every_id_is_its_model(objective, panel, models):
    """Of three teachers one, two or all tell scores; the others are read."""
    batch = batch_of(models)
    given = replace(OBJECTIVES[objective], panel=PANELS[panel])
    live = update(given, models, batch)
    for names in (["code"], ["maths", "code"], ["teacher", "maths", "code"]):
        told = update(given, told_by(models, *names), batch, live[2])
        alike(live, told)
        if panel != "one":
            for name in ("maths", "code"):
                for number in ("kl", "share"):
                    one, other = (run[0].metrics.get(f"{name}/{number}") for run in (live, told))
                    if one is not None:
                        torch.testing.assert_close(other.mean(), one.mean(), rtol=1e-3, atol=1e-4)


def test_res_opd_takes_a_live_and_a_told_teacher_of_as_many_ids(models):
    batch = batch_of(models)
    given = ResOPD(rollout=SAMPLED, k=4, panel=WEIGHED)
    live = update(given, models, batch)
    alike(live, update(given, told_by(models, "maths", k=4), batch, live[2]))


def test_what_one_kind_of_teacher_measures_is_logged_under_its_name(models):
    """A mean over all tokens would count those that it was never measured of."""
    metrics = update(replace(REVERSE, panel=WEIGHED), told_by(models, "code"), batch_of(models))[0].metrics
    assert "code/stored_tail_mass" in metrics
    assert not {"stored_tail_mass", "maths/stored_tail_mass"} & set(metrics)
    assert {"kl", "entropy", "code/kl", "maths/kl"} <= set(metrics)


def test_rows_that_a_teacher_has_not_answered_are_the_others(models):
    """Routed, they leave the step; together, the weights of those who read them grow."""
    batch = batch_of(models)
    lost = models.tokenizer("d")["input_ids"][0]
    quiet = told_by(models, "code", silent=lost)
    rollouts = {SAMPLED: SAMPLED(batch, models, STEP)}
    silent = rollouts[SAMPLED].input_ids.eq(lost).any(1) & (rollouts[SAMPLED].prompt_rows == 1)
    assert silent.sum() == 1
    parts = [{SAMPLED: rollouts[SAMPLED].rows(which)} for which in (~silent, silent)]

    def of(panel, models, given):
        return update(replace(REVERSE, panel=panel), models, batch, given)

    routed, kept = of(Routed(), quiet, rollouts), of(Routed(), models, parts[0])
    alike(kept, routed)
    assert float(routed[0].metrics["unread"].total) == int(parts[1][SAMPLED].predictions.sum())
    assert float(routed[0].metrics["code/unanswered"].mean()) == pytest.approx(1 / 3)
    together = of(WEIGHED, quiet, rollouts)
    with_all = of(WEIGHED, models, parts[0])
    without = of(Together({"teacher": 1.0, "maths": 3.0}), models, parts[1])
    terms = [one[0].terms["loss"] for one in (together, with_all, without)]
    torch.testing.assert_close(terms[0].total, terms[1].total + terms[2].total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1], with_all[1] + without[1], rtol=1e-3, atol=1e-4)
    assert float(together[0].metrics["unread"].total) == 0


def test_every_teller_is_asked_once_and_for_its_rows_alone(models):
    asked = told_by(models, "maths", "code")
    update(replace(REVERSE, panel=Routed()), asked, batch_of(models))
    assert {name: teller.asked for name, teller in asked.tellers.items()} == {"maths": [3], "code": [3]}


def test_a_rank_without_rows_logs_the_same_names(models):
    """Names of metrics are stacked over ranks."""
    rows = [update(replace(REVERSE, panel=Routed()), told_by(models, "code"), batch_of(models, [name] * 6))
            for name in ("maths", "code")]  # fmt: skip
    assert rows[0][0].metrics.keys() == rows[1][0].metrics.keys()


def test_without_tellers_the_others_share_their_weights(models):
    asked = told_by(models, "code")
    batch = batch_of(models)
    rows = SAMPLED(batch, models, STEP)
    count = len(rows.prediction_index)
    readings = WEIGHED(rows, REVERSE.context, asked, STEP)
    kept = comparable(readings, count, asked)
    assert {one.teacher: one.weights for one in kept} == {"teacher": 0.25, "maths": 0.75}
    assert comparable(kept, count, asked) is kept
    assert with_answers(kept, count, asked) == kept


def test_models_know_who_has_a_model(models):
    asked = told_by(models, "teacher", "code")
    assert asked.teacher_names == ("maths", "teacher", "code")
    assert list(asked.named_teachers) == ["maths"]
    for refused in (asked.required_teacher, lambda: asked.teacher_named("code")):
        with pytest.raises(ConfigurationError, match="is a `Teller`, of which no model is loaded"):
            refused()
    alone = asked.taught_by("code")
    assert (alone.teacher, alone.teachers, list(alone.tellers)) == (None, {}, ["teacher"])
    assert asked.taught_by("maths").tellers == {}


def test_in_a_sum_each_term_asks_its_own(models):
    batch = batch_of(models)
    one, other = (replace(REVERSE, panel=OneTeacher(name)) for name in ("code", "maths"))
    alike(update(Sum(terms={"a": one, "b": other}), models, batch),
          update(Sum(terms={"a": one, "b": other}), told_by(models, "code"), batch))  # fmt: skip
