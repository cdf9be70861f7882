"""Rollouts in which a teacher writes, by the teacher's name."""

from dataclasses import replace

import pytest

from tests.rollouts.debates import STEP, batch_of, models_of
from veto_pl.exceptions import ConfigurationError
from veto_pl.rollouts import (
    BestTeacher,
    FromStudent,
    FromTeacher,
    Sampling,
    TeacherCorrected,
    TeacherMixed,
    TeacherSteps,
    TeacherSwitched,
)
from veto_pl.seams.rollouts import TEACHER

SHORT, GREEDY = Sampling(max_new_tokens=5), Sampling(temperature=0.0, max_new_tokens=5)
STUDENT = FromStudent(SHORT)
SOURCES = [
    FromTeacher(GREEDY),
    TeacherMixed(0.5, SHORT),
    TeacherCorrected(3, SHORT),
    TeacherSwitched(0.5, SHORT),
    BestTeacher(GREEDY, STUDENT, top_k=3, hint="{completion}>{prompt}"),
    TeacherSteps(STUDENT, GREEDY, separator="b"),
]
each = pytest.mark.parametrize("source", SOURCES, ids=lambda one: type(one).__name__)


@pytest.fixture(scope="module")
def models():
    return models_of()


@each
def test_a_named_teacher_writes_what_it_writes_as_the_only_one(source, models):
    """Greedy or by the same random numbers; another teacher writes something else."""
    batch = batch_of(models)
    named, other = (replace(source, teacher=name)(batch, models, STEP) for name in ("beta", "alpha"))
    alone = source(batch, models.taught_by("beta"), STEP)
    assert named.completion_ids() == alone.completion_ids()
    assert named.completion_ids() != other.completion_ids()


@each
def test_plans_and_checks_know_who_writes(source):
    assert {role for one in source.writings() for role in one.writers} - {"student"} == {TEACHER}
    named = replace(source, teacher="beta")
    assert {role for one in named.writings() for role in one.writers} - {"student"} == {"beta"}


@each
def test_a_name_that_nobody_has_is_told(source, models):
    with pytest.raises(ConfigurationError, match="There is no teacher `gamma`; the run has `alpha`, `beta`"):
        replace(source, teacher="gamma")(batch_of(models), models, STEP)


def test_teachers_that_are_alike_draw_other_numbers(models):
    twice = replace(models, teachers={"alpha": models.teachers["alpha"], "beta": models.teachers["alpha"]})
    one, two = (FromTeacher(SHORT, teacher=name)(batch_of(models), twice, STEP) for name in twice.teachers)
    assert one.completion_ids() != two.completion_ids()
