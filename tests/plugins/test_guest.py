"""Parts of an installed package in every command: by the documentation of an earlier version, and by today's."""

import ast
import csv
import io
import json

import pytest

from veto_pl.exceptions import ConfigurationError
from veto_pl.rollouts import FromDataset, FromStudent, FromTeacher, Sampling
from veto_pl.seams import RolloutSource, Step, Writing

from .conftest import GUEST, guested, installed

PARTS = [
    node.name
    for file in sorted((GUEST / "guest_parts").glob("*.py"))
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.ClassDef) and node.name.startswith("Guest")
]


def rollout(said, case):
    """Memory and arithmetic of the rollout in a plan."""
    assert said[case]["ended"] == ""
    plan = json.loads(said[case]["printed"].splitlines()[-1])
    memory, work = (next(one for one in plan[kind] if one["phase"] == "rollout") for kind in ("memory", "work"))
    return memory["rest"], work["flops"]


def curve(said, case):
    """The numbers of each row of the table that `explain` prints: probability, loss, gradient, pull."""
    assert said[case]["ended"] == ""
    rows = [line.strip("│ ").split("│") for line in said[case]["printed"].splitlines() if line.startswith("│")]
    return {float(first): [float(text.replace(",", "")) for text in others] for first, *others in rows}


def test_parts_of_an_earlier_documentation_train_unchanged(said):
    assert said["fit"]["ended"] == ""
    rows = list(csv.DictReader(io.StringIO(said["metrics"])))
    assert len([row for row in rows if row["train/loss"]]) == 3
    assert len([row for row in rows if row["validation/guest_numbers"]]) == 2


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_listed(said, part):
    assert part in said["list"]["printed"]


def test_a_source_with_a_sampling_is_planned_as_the_students(said):
    assert rollout(said, "plan of the guest's source") == rollout(said, "plan of the student")
    assert said["plan of the run"]["ended"] == ""


def test_a_source_that_says_who_writes_is_planned_by_its_dearest_writer(said):
    relay, teacher, student = (rollout(said, f"plan of the {name}") for name in ("relay", "teacher", "student"))
    assert relay[1] == teacher[1] > student[1] > 0
    assert relay[0] >= teacher[0] > student[0]


def test_an_engine_with_memory_of_its_own_takes_none_of_the_plans(said):
    assert rollout(said, "plan of an engine elsewhere") == (0, 0)


def test_an_objective_is_drawn_with_its_target(said):
    assert all(row[1] < 0 for probability, row in curve(said, "explain").items() if probability < 0.9)
    assert "target" in said["pages"]["explain"]


def test_a_token_is_drawn_as_its_source_says(said):
    """Of likelihood on a quarter of teacher's and three quarters of student's tokens, a quarter of the way is left."""
    for probability, (_, gradient, _) in curve(said, "explain the relay").items():
        assert gradient == pytest.approx(0.25 * (probability - 0.9), rel=0.01, abs=1e-9)


def test_a_support_is_narrowed_to_the_ids_that_are_drawn(said):
    for probability, (_, gradient, _) in curve(said, "explain few ids").items():
        assert gradient == pytest.approx(probability - 0.9, rel=0.01, abs=1e-9)
    assert "20" in said["pages"]["few"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("too many ids", "`model.objective.init_args.support.init_args.most`: given 20, expected fewer than 16 ids."),
        ("too few steps", "`model.objective.init_args.rollout.init_args.share`: given 0.25, for one step"),
        ("no verifier", "`data.task.init_args.verifier`: given `NoReward`, expected a verifier, for `OPD`"),
    ],
)
def test_what_a_part_requires_is_checked_before_the_run(said, case, message):
    assert message in said[case]["ended"]


def test_what_sources_have_in_common_is_checked_of_others_too(said):
    assert "`model.objective.init_args.rollout.init_args.sampling`: given greedy decoding" in said["greedy"]["printed"]
    assert said["greedy"]["ended"] == ""


def test_a_report_shows_a_metric(said):
    assert said["report"]["ended"] == ""
    assert "guest numbers" in said["pages"]["report"]


def test_a_command_runs_and_is_known_by_its_name(said):
    assert said["greet"] == {"printed": "Hello, you.\n", "ended": ""}
    assert ", greet, " in said["greeet"]["ended"]
    shown = " ".join(said["help"]["printed"].split())
    assert "greet Say hello to somebody." in shown
    assert "predict Write what a student answers to the test rows." in shown, "whole sentences"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("missing = guest_parts.nowhere:run", "The plug-in `missing` (guest_parts.nowhere:run) failed to import"),
        ("odd = guest_parts.described:__name__", "The plug-in `odd` (guest_parts.described:__name__) is "),
        ("fit = guest_parts.described:greet", "The plug-in `fit` (guest_parts.described:greet) has the name of an"),
    ],
)  # fmt: skip
def test_a_broken_command_ends_in_one_sentence_that_names_it(tmp_path, entry, message):
    site = installed(tmp_path / "site", f"[veto_pl.commands]\n{entry}\n")
    done = guested(site, "-m", "veto_pl", entry.split()[0] if "fit" not in entry else "greet", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"veto-pl: {message}")
    assert "Traceback" not in done.stderr


def test_a_source_with_two_writers_has_to_say_how_they_are_mixed():
    class _Both(FromDataset):
        def writings(self):
            return (Writing(("teacher", "student"), Sampling()),)

    with pytest.raises(ConfigurationError, match=r"`_Both` lets several models write.*`token_distribution`"):
        _Both().token_distribution(None, None, Step(0, 1))


def test_by_default_a_source_is_what_it_was_given():
    class _Given(RolloutSource):
        def __call__(self, prompts, models, step):
            raise NotImplementedError

    assert _Given().writings() == (Writing(),)
    assert _Given().token_distribution("student", "teacher", Step(0, 1)) == "teacher"
    assert FromStudent().token_distribution("student", "teacher", Step(0, 1)) == "student"
    assert FromTeacher().writings()[0].writers == ("teacher",)
