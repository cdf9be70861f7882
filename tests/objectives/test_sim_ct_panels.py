"""`SimCT` with several teachers, each with a tokenizer of its own or the student's."""

from dataclasses import replace

import pytest
import torch

from tests.objectives.two_tokenizers import model_of, models_of, update, written
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_models
from veto_pl.models.given import InMemory
from veto_pl.models.vocabulary import real_ids
from veto_pl.objectives import SimCT
from veto_pl.parts.panels import OneTeacher, Routed, Together
from veto_pl.rollouts import FromDataset
from veto_pl.testing.tiny import tiny_source
from veto_pl.testing.tokenizer_kinds import tokenizer_of

ROLLOUT = FromDataset()
BASE = SimCT(rollout=ROLLOUT)
NAMES = ("teacher", "pieces", "same")


@pytest.fixture(scope="module")
def models():
    """Teachers that read characters, sentence pieces, and the student's bytes."""
    plain = models_of("bytes", "characters")
    pieces = tokenizer_of("sentence pieces")
    others = {"pieces": model_of(pieces, 3), "same": model_of(plain.tokenizer, 4)}
    frozen = {name: model.requires_grad_(False).eval() for name, model in others.items()}
    return replace(plain, teachers=frozen, tokenizers={**plain.tokenizers, "pieces": pieces})


def rollout_of(models, names):
    """Three rows, each of which names a teacher."""
    rows = written(models)
    examples = tuple(replace(one, teacher=name) for one, name in zip(rows.prompts.examples, names, strict=True))
    return replace(rows, prompts=replace(rows.prompts, examples=examples))


def close(one, other):
    torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"units": "one_to_one", "shared": 5}, {"score": "logit", "temperature": 2.0}])
def test_weighted_teachers_are_the_weighted_sum_of_each(models, settings):
    weights = {"teacher": 2.0, "pieces": 1.0, "same": 1.0}
    rows, base = rollout_of(models, NAMES), replace(BASE, **settings)
    together, gradients = update(replace(base, panel=Together(weights)), rows, models)
    alone = {name: update(replace(base, panel=OneTeacher(name)), rows, models) for name in weights}
    shares = {name: weight / 4 for name, weight in weights.items()}
    close(together.terms["loss"].total, sum(shares[n] * out.terms["loss"].total for n, (out, _) in alone.items()))
    for place, gradient in enumerate(gradients):
        close(gradient, sum(shares[name] * of[place] for name, (_, of) in alone.items()))
    for name, (output, _) in alone.items():
        if name == "same" and settings:  # alone, its KL is over every id
            continue
        close(together.metrics[f"{name}/kl"].mean(), output.metrics["kl"].mean())
        close(together.metrics[f"{name}/share"].mean(), torch.tensor(shares[name]))
    assert float(together.metrics["aligned"].mean()) <= 1


def test_routed_rows_are_those_of_their_own_teacher(models):
    rows = rollout_of(models, NAMES)
    routed, gradients = update(replace(BASE, panel=Routed()), rows, models)
    apart = [
        update(replace(BASE, panel=OneTeacher(name)), rows.rows(torch.tensor([row])), models)
        for row, name in enumerate(NAMES)
    ]
    close(routed.terms["loss"].total, sum(out.terms["loss"].total for out, _ in apart))
    close(routed.terms["loss"].weight, sum(out.terms["loss"].weight for out, _ in apart))
    for place, gradient in enumerate(gradients):
        close(gradient, sum(of[place] for _, of in apart))
    assert {f"{name}/kl" for name in NAMES} <= set(routed.metrics)


def test_a_row_that_nobody_reads_leaves_the_loss(models):
    rows = rollout_of(models, ("teacher", "nobody", "pieces"))
    left, gradients = update(replace(BASE, panel=Routed(otherwise="leave")), rows, models)
    kept = rows.rows(torch.tensor([0, 2]))
    routed, expected = update(replace(BASE, panel=Routed(otherwise="leave")), kept, models)
    close(left.terms["loss"].total, routed.terms["loss"].total)
    close(left.terms["loss"].weight, routed.terms["loss"].weight)
    for one, other in zip(gradients, expected, strict=True):
        close(one, other)
    assert float(left.metrics["unread"].total) == int(rows.rows(torch.tensor([1])).predictions.sum())


def test_a_teacher_with_the_students_tokenizer_is_compared_on_every_id(models):
    """Beside others with ids of their own as well as alone, where the loss is the divergence over the vocabulary."""
    rows = rollout_of(models, NAMES)
    plain = replace(models, tokenizers={})
    alone, gradients = update(replace(BASE, panel=OneTeacher("same")), rows, plain)
    beside, others = update(replace(BASE, panel=Together({"same": 1.0, "pieces": 0.0})), rows, models)
    close(beside.terms["loss"].total, alone.terms["loss"].total)
    for one, other in zip(others, gradients, strict=True):
        close(one, other)


def test_every_teacher_may_bring_a_tokenizer_but_none_of_a_pool():
    def source(kind):
        tokenizer = tokenizer_of(kind)
        return InMemory(tiny_source(vocab_size=real_ids(tokenizer) + 2).load(), tokenizer)

    sources = {name: source(kind) for name, kind in (("a", "characters"), ("b", "sentence pieces"))}
    student = source("bytes")
    for panel in (Together(), Routed()):
        given = replace(BASE, panel=panel)
        models = load_models(student, None, tokenizer_of("bytes"), teachers=sources, objective=given)
        assert set(models.tokenizers) == {"a", "b"}
    pooled = replace(BASE, panel=Together(combine="target"))
    with pytest.raises(ConfigurationError, match="`Together` of `SimCT` would have it read the student's ids"):
        load_models(student, None, tokenizer_of("bytes"), teachers=sources, objective=pooled)
