"""A teacher with a tokenizer of its own: what is kept of it, and who may have one."""

import warnings
from dataclasses import dataclass, replace

import pytest
import torch

from tests.objectives.two_tokenizers import COMPLETIONS, PROMPTS, STEP, update
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import InMemory, MovingAverage
from veto_pl.models.assemble import load_models
from veto_pl.models.vocabulary import real_ids
from veto_pl.objectives import OPD, SFT, VOPD, Distill, ExOPD, Phases, SimCT, SimpleOPD, Sum
from veto_pl.parts.contexts import Privileged
from veto_pl.parts.panels import Together
from veto_pl.rollouts import FromDataset, FromTeacher
from veto_pl.seams import Panel, Sequences
from veto_pl.testing.tiny import prompt_batch, tiny_source
from veto_pl.testing.tokenizer_kinds import tokenizer_of

STUDENT = tokenizer_of("characters")
ALIGNED = {
    "SimCT": SimCT(rollout=FromDataset()),
    "SimpleOPD": SimpleOPD(rollout=FromDataset(), units="minimal", importance_cap=None),
}


def source(tokenizer, seed=0, **dimensions):
    return InMemory(tiny_source(seed=seed, vocab_size=real_ids(tokenizer) + 2, **dimensions).load(), tokenizer)


def load(objective, kind="bytes", **others):
    return load_models(source(STUDENT), source(tokenizer_of(kind), 1), STUDENT, objective=objective, **others)


def written(models, count=2):
    batch = prompt_batch(models, PROMPTS[:count], COMPLETIONS[:count])
    return Sequences.join(batch, batch.completion_ids, batch.completion_mask)


@pytest.mark.parametrize("objective", ALIGNED.values(), ids=ALIGNED)
def test_the_teacher_keeps_its_ids_and_nobody_compares_how_texts_end(objective):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = load(objective)
    theirs = tokenizer_of("bytes")
    assert models.teacher_tokenizer.get_vocab() == theirs.get_vocab()
    assert (models.student.vocab_size, models.teacher.vocab_size) == (real_ids(STUDENT), real_ids(theirs))
    output, gradients = update(objective, written(models), models)
    assert float(output.metrics["aligned"].mean()) == 1
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("objective", ALIGNED.values(), ids=ALIGNED)
def test_a_batch_of_no_rows_teaches_nothing(objective):
    models = load(objective)
    nothing = written(models).rows(torch.tensor([], dtype=torch.int64))
    output, gradients = update(objective, nothing, models)
    assert float(output.terms["loss"].total) == 0
    assert float(output.terms["loss"].weight) == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("objective", [*ALIGNED.values(), Distill()], ids=[*ALIGNED, "Distill"])
def test_a_teacher_with_the_same_ids_is_read_as_ever(objective):
    models = load(objective, "characters")
    plain = load_models(source(STUDENT), source(STUDENT, 1), STUDENT)
    assert not models.tokenizers
    one, other = (update(replace(objective, chunk_rows=64), written(m), m)[0].terms["loss"] for m in (models, plain))
    assert torch.equal(one.total, other.total)


TERMS = {
    "both align": ((SimCT(), SimpleOPD()), True),
    "one reads no teacher": ((SimCT(), SFT()), True),
    "one compares ids": ((SimCT(), VOPD()), False),
    "policy gradients": ((OPD(), ExOPD()), True),
    "none reads a teacher": ((SFT(), SFT(aggregation="sequence")), False),
}


@pytest.mark.parametrize(("terms", "aligned"), TERMS.values(), ids=TERMS)
def test_several_objectives_align_where_all_that_read_the_teacher_do(terms, aligned):
    together = Sum(terms=dict(zip("ab", terms, strict=True)))
    assert together.aligns_tokenizers == aligned
    assert Phases(first=terms[0], then=terms[1]).aligns_tokenizers == aligned
    assert Sum(terms={"inner": together}).aligns_tokenizers == aligned


def test_references_and_a_teacher_with_other_ids_are_learnt_from_together():
    objective = Sum(terms={"aligned": ALIGNED["SimCT"], "gold": SFT()})
    models = load(objective)
    output = objective.loss({FromDataset(): written(models)}, models, STEP)
    assert all(float(stat.total) > 0 for stat in output.terms.values())


class Unread(InMemory):
    """A model whose weights nobody may ask for."""

    def load(self):
        raise AssertionError("weights were read")


def unread(kind="bytes", seed=1):
    made = source(tokenizer_of(kind), seed)
    return Unread(made.model, made.tokenizer)


@dataclass(frozen=True)
class Whispering(Panel):
    """A panel that does not say that its teachers read the rollout as it is."""

    def __call__(self, sequences, context, models, step):
        raise AssertionError("nobody reads")


REFUSED = {
    "an objective that compares ids": (Distill(), {}, "different tokenizers.*`SimCT`, or a policy gradient"),
    "nobody who reads it": (None, {}, "different tokenizers"),
    "a further teacher": (
        SimCT(),
        {"teachers": {"maths": unread()}},
        r"\.maths`.*nobody who reads it aligns tokenizers",
    ),
    "a reference": (SimCT(), {"reference": unread()}, "different tokenizers"),
    "a teacher that follows": (SimCT(), {"teacher": MovingAverage(unread())}, "`MovingAverage` follows the student"),
    "another text for it": (SimCT(context=Privileged("{prompt}!")), {}, "`Privileged` of `SimCT` would have it read"),
    "one teacher of several": (
        SimCT(panel=Together(combine="target")),
        {"teachers": {"maths": unread()}},
        r"\.maths`.*`Together` of `SimCT` would have it read",
    ),
    "a panel inside of a sum": (
        Sum(terms={"gold": SFT(), "aligned": SimCT(panel=Together(combine="target"))}),
        {},
        "`Together` of `SimCT` would have it read",
    ),
    "a panel that shows other texts": (
        OPD(panel=Whispering()),
        {},
        "`Whispering` of `OPD` would have it read",
    ),
    "a teacher that writes": (SimCT(rollout=FromTeacher()), {}, "`FromTeacher` lets it write"),
    "a teacher that writes for another term": (
        Sum(terms={"aligned": SimCT(), "written": SFT(rollout=FromTeacher())}),
        {},
        "`FromTeacher` lets it write",
    ),
    "words that cannot be aligned": (SimCT(), {"teacher": unread("word pieces")}, "cannot be aligned with another"),
}


@pytest.mark.parametrize(("objective", "given", "message"), REFUSED.values(), ids=REFUSED)
def test_who_may_not_have_a_tokenizer_of_its_own_is_refused_before_weights_are_read(objective, given, message):
    named = given if given else {"teacher": unread()}
    student = Unread(source(STUDENT).model, STUDENT)
    with pytest.raises(ConfigurationError, match=message):
        load_models(student, tokenizer=STUDENT, objective=objective, **{"teacher": None} | named)
