"""What the conformance suite makes of a plug-in: in processes of their own, as a third party runs it."""

import re
from dataclasses import dataclass

import pytest

from tests.processes import ROOT, python
from veto_pl.objectives import GKD, SFT, Distill, Sum
from veto_pl.parts.advantages import LogRatio
from veto_pl.parts.schedules import Linear
from veto_pl.plugins import available
from veto_pl.rollouts import FromStudent, Mixture, Sampling
from veto_pl.seams import RolloutSource, Schedule
from veto_pl.testing.examples import examples_of, installed, installed_classes, settings_of, shortened

PLUGIN = """
from dataclasses import dataclass, replace

from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Divergence, RolloutSource, Schedule


@dataclass(frozen=True)
class Needy(Divergence):
    scale: float

    def __call__(self, student_logp, target_logp):
        return student_logp.sum(-1)


@dataclass(frozen=True)
class Helped(Schedule):
    value: float

    def __call__(self, step, total):
        return self.value

    @classmethod
    def conformance_example(cls):
        return cls(0.5)


@dataclass(frozen=True)
class Helpless(RolloutSource):
    def __call__(self, prompts, models, step):
        raise NotImplementedError

    @classmethod
    def conformance_example(cls):
        return cls(3)


@dataclass(frozen=True)
class Repeating(FromStudent):
    sampling: Sampling = Sampling(max_new_tokens=4)

    def __call__(self, prompts, models, step):
        return super().__call__(prompts, models, replace(step, index=0))
"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "their_package.py").write_text(PLUGIN)
    metadata = tmp_path / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[veto_pl.plugins]\ntheirs = their_package\n")
    return tmp_path


def test_a_class_that_cannot_be_made_hides_no_results(plugin):
    classes = "Needy or Helped or Helpless or Repeating or test_eos"
    done = python(
        "-m", "pytest", "--pyargs", "veto_pl.testing", "-v", "-p", "no:cacheprovider", "-m", "", "-k", classes,
        cwd=ROOT, path=[plugin],
    )  # fmt: skip
    results = dict(re.findall(r"::(.+) (PASSED|FAILED)", done.stdout))
    assert {test for test, result in results.items() if result == "FAILED"} == {
        "test_every_class_has_an_example[Needy]",
        "test_every_class_has_an_example[Helpless]",
        "test_another_step_draws_other_numbers[{'index': 4}-Repeating]",
    }
    for name in ("Helped", "Repeating"):
        assert results[f"test_every_class_has_an_example[{name}]"] == "PASSED"
        assert results[f"test_settings_are_frozen_hashable_and_picklable[{name}]"] == "PASSED"
    assert results["test_eos_ends_a_completion[FromDataset]"] == "PASSED"
    assert "`their_package.Needy` cannot be made from its defaults (TypeError:" in done.stdout
    assert "Give it a class method `examples()`" in done.stdout
    assert "`Helpless.conformance_example()` failed (TypeError:" in done.stdout


def test_an_example_of_another_class_is_refused():
    @dataclass(frozen=True)
    class Mine(Linear):
        @classmethod
        def conformance_example(cls):
            return Linear(0.0, 1.0)

    with pytest.raises(AssertionError, match=r"`Mine\.conformance_example\(\)` must return one, got Linear\("):
        examples_of(Mine)


def test_what_a_test_defines_is_not_installed():
    @dataclass(frozen=True)
    class Mine(Schedule):
        def __call__(self, step, total):
            return 1.0

    assert Mine in available(Schedule)
    assert Mine not in installed_classes(Schedule)
    assert Linear in installed_classes(Schedule)


def test_an_empty_tuple_leaves_a_class_out():
    without = {cls for cls in installed_classes(RolloutSource) if not examples_of(cls)}
    assert {cls.__name__ for cls in without} == {"FromCache", "ServedTeacher"}
    assert not without & {type(instance) for instance in installed(RolloutSource)}


def test_completions_are_cut_however_deep_their_length_is_set():
    whole = Sum(terms={"a": GKD(), "b": Distill(rollout=Mixture(FromStudent(Sampling(max_new_tokens=3))))})
    short = shortened(whole, 5)
    assert [x.max_new_tokens for x in samplings(whole)] == [256, 3]
    assert [x.max_new_tokens for x in samplings(short)] == [5, 3]
    assert shortened(short, 5) is short


def samplings(whole):
    first, second = whole.terms["a"].sampling, whole.terms["b"].rollout.first.sampling
    return [first, second]


def test_settings_say_what_is_not_the_default():
    assert settings_of(SFT()) == {"class_path": "veto_pl.objectives.sft.SFT", "init_args": {}}
    given = settings_of(Distill(divergence=None, advantage=LogRatio(0.5)))["init_args"]
    ratio = {"class_path": f"{LogRatio.__module__}.LogRatio", "init_args": {"discount": 0.5}}
    assert given == {"divergence": None, "advantage": ratio}
