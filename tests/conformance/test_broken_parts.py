"""The laws of rewards, judges, tasks, engines and targets can fail: each is broken by somebody, who is reported."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from veto_pl.rollouts import DecodeLoop
from veto_pl.seams import Engine, Example, Judge, Reward, Session, Target, Task
from veto_pl.testing import test_conformance, test_engines, test_parts, test_rewards, test_tasks
from veto_pl.testing.strategies import logits_of_kind
from veto_pl.testing.tiny import tiny_models


def inner(law):
    """The test without hypothesis, or the test itself."""
    return getattr(getattr(law, "hypothesis", None), "inner_test", law)


@dataclass(frozen=True)
class _Reward(Reward):
    score: Callable = lambda row, text: float(text == row.completion)
    many: Callable = lambda scores: scores

    def __call__(self, example, completion):
        return self.score(example, completion)

    def batch(self, examples, completions):
        return self.many(super().batch(examples, completions))


@dataclass(frozen=True)
class _Judge(Judge):
    decide: Callable = lambda first, second: 0.5 if len(first) == len(second) else float(len(first) > len(second))

    def __call__(self, example, first, second):
        return self.decide(first, second)


COUNT = iter(range(10**9))
SCORE, MANY = test_rewards.test_every_text_has_a_finite_score, test_rewards.test_many_are_scored_as_one_by_one
REFERENCE = test_rewards.test_no_text_is_better_than_the_reference
VERDICT, ORDER = (
    test_rewards.test_every_pair_has_a_verdict_or_none,
    test_rewards.test_the_order_of_two_answers_decides_nothing,
)
PAIRS = {"drawn": [(0, "It is 12."), (1, "no"), (0, "x")]}


def spoil(row, text):
    row.row["prompt"] = "other"
    return 0.0


JUDGING = [
    (SCORE, "raised ZeroDivisionError", _Reward(lambda row, text: 1 / len(text)), {"text": ""}),
    (SCORE, r"raised KeyError.*`example_rows\(\)`", _Reward(lambda row, text: float(row.row["answer"])), {"text": "a"}),
    (SCORE, "nan, expected a finite number", _Reward(lambda row, text: float("nan")), {"text": ""}),
    (SCORE, "of type Tensor, expected a float", _Reward(lambda row, text: torch.tensor(1.0)), {"text": ""}),
    (SCORE, "of type NoneType, expected a float", _Reward(lambda row, text: None), {"text": ""}),
    (SCORE, "must not be changed", _Reward(spoil), {"text": ""}),
    (MANY, "but one by one the scores are", _Reward(many=lambda scores: scores[::-1]), PAIRS),
    (MANY, "had two scores|one by one", _Reward(lambda row, text: float(next(COUNT))), PAIRS),
    (REFERENCE, "is judged better than the reference", _Reward(lambda row, text: float(text != row.completion)), {}),
    (
        VERDICT,
        "A verdict is 1.0, 0.5 or 0.0, got 0.7",
        _Judge(lambda first, second: 0.7),
        {"first": "a", "second": "b"},
    ),
    (VERDICT, "`NoVerdictError`", _Judge(lambda first, second: 1 // 0), {"first": "a", "second": "b"}),
    (VERDICT, "Two verdicts", _Judge(lambda first, second: next(COUNT) % 2), {"first": "a", "second": "b"}),
    (ORDER, "the other way round 1.0", _Judge(lambda first, second: 1.0), {"first": "a", "second": "b"}),
]


@dataclass(frozen=True)
class _Task(Task):
    rows: Callable = lambda split: [Example(f"{split} {n}", f"{n}") for n in range(4)]
    score: Callable = lambda row, text: float(text == row.completion)
    many: Callable = lambda scores: scores
    told: tuple = ()
    stops: tuple = ()
    shown: Callable = lambda template: template

    def load(self, split):
        return self.rows(split)

    def reward(self, example, completion):
        return self.score(example, completion)

    def rewards(self, examples, completions):
        return self.many(super().rewards(examples, completions))

    def shown_by(self, template):
        return self.shown(template)

    @property
    def sources(self):
        return self.told

    @property
    def stop(self):
        return self.stops


class _Mislaid(list):
    def __getitem__(self, place):
        return super().__getitem__(place - 1)


class _Endless(list):
    def __len__(self):
        return 7


THERE, TYPES = test_tasks.test_there_are_rows_to_train_on, test_tasks.test_rows_are_examples
SAME, APART = test_tasks.test_a_split_has_the_same_rows_each_time, test_tasks.test_no_row_is_in_two_splits
SCORED, OTHERS = (
    test_tasks.test_every_completion_has_a_finite_score,
    test_tasks.test_no_row_has_the_reference_of_another,
)
SAYS = test_tasks.test_what_a_task_says_of_a_run_can_be_used
SUMS = {f"{n} + 1": f"{n + 1}" for n in range(4)}


def shifted(split):
    """Rows whose references are those of the next ones."""
    return [Example(f"{n} + 1", f"{n + 2}") for n in range(4)]


TASKS = [
    (THERE, "The split `train` has no rows", _Task(lambda split: [])),
    (TYPES, "must return a sequence, got generator", _Task(lambda split: (Example("a") for _ in "ab"))),
    (TYPES, "must be an `Example`, got \\('a', 'b'\\)", _Task(lambda split: [("a", "b")])),
    (TYPES, "has 5 where there must be a text", _Task(lambda split: [Example("a", 5)])),
    (TYPES, "but `sources` are \\('one',\\)", _Task(told=("one",))),
    (SAME, "gave other rows when it was called again", _Task(lambda split: [Example(f"{next(COUNT)}")])),
    (SAME, "must be the row that comes i-th", _Task(lambda split: _Mislaid([Example("a"), Example("b")]))),
    (SAME, "has the length 7", _Task(lambda split: _Endless([Example("a")]))),
    (APART, "A row of `validation` is in `train` too", _Task(lambda split: [Example("a", "b")])),
    (SCORED, "raised ZeroDivisionError", _Task(score=lambda row, text: 1 / len(text))),
    (SCORED, "inf, expected a finite number", _Task(score=lambda row, text: float("inf"))),
    (SCORED, "but one by one they are", _Task(score=lambda row, text: len(text), many=lambda scores: scores[::-1])),
    (
        OTHERS,
        "Are rows and references in the same order",
        _Task(shifted, lambda row, text: float(text == SUMS[row.prompt])),
    ),
    (SAYS, "`stop` must hold texts", _Task(stops=("",))),
    (SAYS, "must return a template, got None", _Task(shown=lambda template: None)),
]


@dataclass(frozen=True)
class _Engine(Engine):
    change: Callable = lambda rows: rows
    asked: Callable = lambda sampling: sampling
    going_on: Callable = lambda models: models.student

    def generate(self, prompts, model, sampling, models, step, *, on_policy):
        rows = DecodeLoop().generate(prompts, model, self.asked(sampling), models, step, on_policy=on_policy)
        return self.change(rows)

    def session(self, model, models, *, on_policy):
        def write(prompts, sampling, step):
            return DecodeLoop().generate(prompts, self.going_on(models), sampling, models, step, on_policy=on_policy)

        return Session(write)

    def set_aside(self, memory, weights):
        return (0, 0) if self.change is _Engine.change else (1, 2)


ORDERED, LOGP = (
    test_engines.test_every_prompt_has_its_completions_in_order,
    test_engines.test_log_probabilities_are_those_of_the_model,
)
GREEDY, STOPS = (
    test_engines.test_greedy_decoding_takes_the_likeliest_id,
    test_engines.test_a_stop_string_ends_a_completion,
)
GROWING = test_engines.test_rows_that_go_on_are_written_as_without_what_is_kept
MEMORY = test_engines.test_a_plan_can_count_the_memory_of_an_engine
SAMPLING, ANY = {"sampling": test_engines.SHAPED}, {"on_policy": True}
ENGINES = [
    (ORDERED, "two completions, in order", _Engine(asked=lambda how: replace(how, num_completions=1)), ANY),
    (ORDERED, "what the caller says", _Engine(lambda rows: replace(rows, on_policy=~rows.on_policy)), ANY),
    (LOGP, "but by the model it is", _Engine(asked=lambda how: replace(how, temperature=1.0)), SAMPLING),
    (LOGP, "must say by `sampler_logp`", _Engine(lambda rows: replace(rows, sampler_logp=None)), SAMPLING),
    (GREEDY, "is not greedy", _Engine(asked=lambda how: replace(how, temperature=1.0)), {}),
    (GROWING, "must write what `generate` does", _Engine(going_on=lambda models: models.teacher), {}),
    (STOPS, "goes on behind a stop string", _Engine(asked=lambda how: replace(how, stop=())), {}),
    (STOPS, "that is judged has a stop string", _Engine(lambda rows: replace(rows, unjudged=None)), {}),
    (MEMORY, "must lie within them, got", _Engine(lambda rows: replace(rows)), {}),
]  # fmt: skip


@dataclass(frozen=True)
class _Target(Target):
    make: Callable = lambda teacher, student: teacher

    def __call__(self, teacher_logp, student_logp, step):
        return self.make(teacher_logp, student_logp)


OF_TEACHER, SUM = (
    test_conformance.test_targets_are_made_of_the_teacher,
    test_conformance.test_distributions_are_normalised,
)
TARGETS = [
    (OF_TEACHER, "the same for another teacher", lambda teacher, student: student),
    (SUM, "", lambda teacher, student: 2 * teacher),
]


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2")


def named(cases):
    return [inner(law).__name__ for law, *_ in cases]


@pytest.mark.parametrize(("law", "message", "part", "given"), JUDGING, ids=named(JUDGING))
def test_who_judges_badly_is_reported(law, message, part, given):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        inner(law)(part, **given)


@pytest.mark.parametrize(("law", "message", "task"), TASKS, ids=named(TASKS))
def test_a_task_that_reads_rows_wrongly_is_reported(law, message, task):
    split = {"split": "validation"} if law in (TYPES, SAME, SCORED) else {}
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        law(task, **split)


@pytest.mark.parametrize(("law", "message", "engine", "given"), ENGINES, ids=named(ENGINES))
def test_an_engine_that_samples_something_else_is_reported(law, message, engine, given, models):
    with pytest.raises(AssertionError, match=message):
        law(engine, models, **given)


@pytest.mark.parametrize(("law", "message", "make"), TARGETS, ids=named(TARGETS))
def test_a_wrong_target_is_reported(law, message, make):
    pair = logits_of_kind("ordinary", 3, 5, 0)
    inner(law)(_Target(), pair)
    with pytest.raises(AssertionError, match=message):
        inner(law)(_Target(make), pair)


def test_who_keeps_the_laws_is_not_reported(models):
    for law, _, part, given in JUDGING:
        inner(law)(type(part)(), **given)
    for law, *_ in TASKS:
        law(_Task(), **({"split": "test"} if law in (TYPES, SAME, SCORED) else {}))
    for law, _, _, given in ENGINES:
        law(_Engine(), models, **given)


@pytest.mark.parametrize(("suite", "broken"), [(test_rewards, JUDGING), (test_tasks, TASKS), (test_engines, ENGINES)])
def test_each_law_is_broken_by_somebody(suite, broken):
    known = {law for name, law in vars(suite).items() if name.startswith("test_") and callable(law)}
    assert {law for law, *_ in broken} == known


@dataclass
class _Thawed(Reward):
    def __call__(self, example, completion):
        return 0.0


class _Plain(Reward):
    def __call__(self, example, completion):
        return 0.0


@pytest.mark.parametrize("part", [_Thawed, _Plain])
def test_settings_that_are_no_frozen_dataclass_are_reported(part):
    with pytest.raises(AssertionError, match=f"`{part.__name__}` must be a frozen dataclass"):
        test_parts.test_settings_are_frozen_hashable_and_picklable(part())


def test_arguments_in_another_order_are_reported():
    class _Swapped(Target):
        def __call__(self, student_logp, teacher_logp, step):
            return teacher_logp

    class _Unnamed(Target):
        def __call__(self, t, s, when):
            return t

    law = test_parts.test_arguments_come_in_the_order_of_the_seam
    message = (
        r"(?s)`_Swapped.__call__` has .* \(student_logp, teacher_logp, step\), but is called with \(teacher_logp, stu"
    )
    with pytest.raises(AssertionError, match=message):
        law(_Swapped)
    law(_Unnamed)
    law(_Task)
