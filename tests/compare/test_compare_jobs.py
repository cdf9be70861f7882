"""What the runs of a study are told, and when they are out of date."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.commands.compare import load_study
from veto_pl.compare.jobs import Jobs, filled, joined, nested, point_text, slug
from veto_pl.compare.study import EqualBudget, Method, SettingSearch, Stage, Study
from veto_pl.exceptions import ConfigurationError, DataError

ROOT = Path(__file__).parents[2]
KEYS = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)
SETTINGS = st.dictionaries(KEYS, TREES, max_size=3)


def a_study(**fields):
    given = {
        "title": "t",
        "methods": {"A": Method(), "B": Method(settings={"model": {"x": "{start}/export"}})},
        "baseline": "A",
        "budget": EqualBudget(steps=3),
        "stages": {
            "teacher": Stage(),
            "start": Stage(per_seed=True, settings={"model": {"teacher": "{teacher}/export"}}),
        },
    }
    return Study(**{**given, **fields})


def jobs(study, folder=Path("runs/here"), home=Path(".")):
    return Jobs(study, home, folder)


@given(SETTINGS, SETTINGS, SETTINGS)
def test_joining_is_associative_and_the_empty_mapping_is_neutral(a, b, c):
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    assert joined(a, {}) == joined({}, a) == a


@given(SETTINGS, SETTINGS)
def test_what_is_laid_over_wins(a, b):
    result = joined(a, b)
    for key, value in b.items():
        assert result[key] == value or (isinstance(value, dict) and isinstance(a.get(key), dict))


def test_another_class_inherits_nothing_and_the_same_class_everything():
    old = {"objective": {"class_path": "Veto", "init_args": {"beta": 0.5}}}
    assert joined(old, {"objective": {"class_path": "SFT"}}) == {"objective": {"class_path": "SFT"}}
    warmer = joined(old, {"objective": {"class_path": "Veto", "init_args": {"chunk_rows": 8}}})
    assert warmer["objective"]["init_args"] == {"beta": 0.5, "chunk_rows": 8}
    assert joined(old, {"objective": {"init_args": {"beta": 1}}})["objective"]["init_args"] == {"beta": 1}


def test_a_run_is_named_by_its_method_its_point_and_its_seed():
    made = jobs(a_study())
    assert made.search("A", {"model.lr": 0.1}, 0).name == "A, lr 0.1, seed 0"
    assert made.trial("A", {}, 1).name == "A, seed 1"
    names = [job.name for name in ("teacher", "start") for job in made.stages(name)]
    assert names[:2] == ["stage teacher", "stage start, seed 1"]


def test_folders_replace_their_names_and_other_braces_stay():
    settings = {"a": ["{start}/export", "{metadata[word]}"], "b": {"c": "{other}", "d": 3}}
    assert filled(settings, {"start": Path("x/y")}) == {
        "a": ["x/y/export", "{metadata[word]}"],
        "b": {"c": "{other}", "d": 3},
    }


def test_a_run_starts_from_the_stages_that_it_names():
    made = jobs(a_study())
    alone, started = made.trial("A", {}, 2), made.trial("B", {}, 2)
    (teacher,) = made.stages("teacher")
    start = next(job for job in made.stages("start") if job.name.endswith("seed 2"))
    assert alone.needs == ()
    assert started.needs == (start.fingerprint,)
    assert start.needs == (teacher.fingerprint,)
    assert started.settings["model"]["x"] == f"{start.folder}/export"
    assert start.settings["model"]["teacher"] == f"{teacher.folder}/export"
    assert started.settings["seed_everything"] == 2


def test_a_stage_is_made_once_or_once_per_seed():
    study = a_study(search=SettingSearch(grid={"model.lr": (1.0, 2.0)}, seeds=(0, 9)))
    assert len(jobs(study).stages("teacher")) == 1
    assert len({job.folder for job in jobs(study).stages("start")}) == 7
    assert len(jobs(a_study()).stages("start")) == 5  # the seeds of a search that has no choice are not run


def test_studies_side_by_side_share_the_stages_that_they_tell_the_same():
    here, there = jobs(a_study()), jobs(a_study(title="other"), Path("runs/there"))
    assert here.stages("start") == there.stages("start")
    changed = a_study(stages={"teacher": Stage(settings={"seed": 3}), "start": a_study().stages["start"]})
    assert {j.folder for j in jobs(changed).stages("start")}.isdisjoint(j.folder for j in here.stages("start"))


def test_another_name_of_the_same_folder_repeats_nothing():
    here, absolute = jobs(a_study()), jobs(a_study(), Path("runs/here").absolute())
    assert here.trial("B", {}, 1).settings != absolute.trial("B", {}, 1).settings
    assert here.trial("B", {}, 1).fingerprint == absolute.trial("B", {}, 1).fingerprint
    assert {job.fingerprint for job in here.stages("start")} == {job.fingerprint for job in absolute.stages("start")}


def test_whatever_a_run_is_told_changes_its_fingerprint(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\n")
    study = a_study(config=("a.yaml",), evaluations={"greedy": {"temperature": 0.0}})
    first = jobs(study, home=tmp_path).trial("B", {"model.lr": 0.1}, 1)
    others = [
        jobs(study, home=tmp_path).trial("B", {"model.lr": 0.1}, 2),
        jobs(study, home=tmp_path).trial("B", {"model.lr": 0.2}, 1),
        jobs(replace(study, budget=EqualBudget(tokens=3)), home=tmp_path).trial("B", {"model.lr": 0.1}, 1),
        jobs(replace(study, evaluations={"warm": {}}), home=tmp_path).trial("B", {"model.lr": 0.1}, 1),
        jobs(replace(study, stages={**study.stages, "teacher": Stage(settings={"y": 1})}), home=tmp_path).trial(
            "B", {"model.lr": 0.1}, 1
        ),
    ]
    fingerprints = [first.fingerprint, *(other.fingerprint for other in others)]
    (tmp_path / "a.yaml").write_text("x: 2\n")
    fingerprints.append(jobs(study, home=tmp_path).trial("B", {"model.lr": 0.1}, 1).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_search_and_trial_write_apart_and_only_the_trial_is_tested():
    made = jobs(a_study())
    search, trial = made.search("A", {"model.lr": 0.1}, 0), made.trial("A", {"model.lr": 0.1}, 1)
    assert not search.evaluations
    assert list(trial.evaluations) == ["greedy"]
    assert search.folder.parts[2] == "search"
    assert trial.folder == Path("runs/here/trials/A/seed-1")


def test_a_missing_file_of_settings_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.yaml"):
        _ = jobs(a_study(config=("nothing.yaml",)), home=tmp_path).trial("A", {}, 1).fingerprint


@given(st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=2, max_size=5))
def test_names_stay_apart_as_folders(names):
    slugs = [slug(name) for name in names]
    assert len({s.casefold() if s.isascii() and s == n else s for s, n in zip(slugs, names, strict=True)}) > 0
    assert len(set(slugs)) == len(names)
    assert all(s and "/" not in s and s not in (".", "..") for s in slugs)


def test_methods_never_share_a_folder():
    study = a_study(methods={"a b": Method(), "A-b": Method()}, baseline="a b")
    with pytest.raises(ConfigurationError, match="'a b' and 'A-b'"):
        jobs(study)
    long = [slug("m" * 300), slug("m" * 301)]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 120


def test_no_other_limit_ends_a_run_before_its_budget(tmp_path):
    short = {"trainer": {"max_steps": 6, "max_epochs": 1}, "budget": {"tokens": 7}}
    steps = jobs(a_study(settings=short)).trial("A", {}, 1).settings
    assert (steps["trainer"]["max_steps"], steps["trainer"]["max_epochs"]) == (3, -1)
    assert steps["budget"] == {"steps": 3, "tokens": None, "seconds": None}
    tokens = jobs(a_study(settings=short, budget=EqualBudget(tokens=900))).trial("A", {}, 1).settings
    assert tokens["trainer"]["max_steps"] > 10**8
    assert tokens["budget"]["tokens"] == 900


@given(st.lists(st.floats(1e-9, 1e9) | st.integers(1, 10**9), min_size=2, max_size=4, unique=True))
def test_different_points_have_different_texts(values):
    assert len({point_text({"model.lr": value}) for value in values}) == len(values)


def test_points_are_written_for_people():
    assert point_text({"model.optimizer.init_args.lr": 1e-3, "model.wd": 0.1}) == "lr 0.001, wd 0.1"
    assert nested(("a.b.c", 1)) == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"baseline": "C"}, "baseline"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"seeds": ()}, "seeds"),
        ({"evaluations": {}}, "evaluations"),
        ({"confidence": 95.0}, "confidence"),
        ({"answers": -1}, "answers"),
        ({"quantities": ("grady/accuracy",)}, "grady/accuracy"),
        ({"frontier": ("greedy/x", "other/y")}, "other/y"),
        ({"stages": {"a{b": Stage()}}, "brace"),
        ({"methods": {1: Method()}}, "text"),
        ({"evaluations": {"../x": {}}}, "folder"),
        ({"evaluations": {"a/b": {}}}, "folder"),
        ({"evaluations": {"export": {}}}, "folder"),
        ({"evaluations": {"metrics.csv": {}}}, "folder"),
        ({"search": SettingSearch(grid={"model.lr": (1.0, 2.0)}, seeds=(3,))}, "search.seeds"),
        ({"search": SettingSearch(grid={"model.lr": ()})}, "search.grid"),
    ],
)
def test_a_study_that_cannot_work_is_refused(fields, named):
    with pytest.raises(ConfigurationError, match=named):
        a_study(**fields)


@pytest.mark.parametrize("given", [{}, {"steps": 1, "tokens": 2}, {"seconds": 0.0}, {"steps": -1}])
def test_a_budget_is_one_positive_number(given):
    with pytest.raises(ConfigurationError, match="budget"):
        EqualBudget(**given)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_of_the_repository_can_be_read(file):
    study = load_study(file)
    made = Jobs(study, file.parent, Path("runs/x"))
    assert all(made.trial(method, point, 1).fingerprint for method in study.methods for point in study.search.points)


def test_options_replace_entries_and_mistakes_are_named(tmp_path):
    file = ROOT / "configs/compare/debug.yaml"
    study = load_study(file, ["--seeds=[4,5]", "--budget.steps=7"])
    assert (study.seeds, study.budget) == ((4, 5), EqualBudget(steps=7))
    with pytest.raises(ConfigurationError, match="seeds"):
        load_study(file, ["--seeds=many"])
    with pytest.raises(ConfigurationError, match="wrong"):
        load_study(file, ["--wrong=1"])
    (points,) = [load_study(file, ['--search.grid={"data.batch_size": [4, 8]}']).search.points]
    assert [repr(point["data.batch_size"]) for point in points] == ["4", "8"]  # whole numbers stay whole
    (tmp_path / "b.yaml").write_text(file.read_text().replace("{steps: 12}", "5"))
    with pytest.raises(ConfigurationError, match="`budget` of a study expected named entries, got 5"):
        load_study(tmp_path / "b.yaml")
    kept = {"model": {"metrics": [{"class_path": "veto_pl.metrics.Accuracy"}], "x": {"class_path": "decimal.Decimal"}}}
    assert load_study(file, [f"--test={json.dumps(kept)}", f"--settings={json.dumps(kept)}"]).test == kept
    (tmp_path / "s.yaml").write_text("title: t\nmethod: {}\n")
    with pytest.raises(ConfigurationError, match="method"):
        load_study(tmp_path / "s.yaml")
    with pytest.raises(ConfigurationError, match="no file"):
        load_study(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("group", "entry", "message"),
    [
        (
            "methods",
            "{setings: {model: {x: 1}}}",
            r"Option 'setings\.model\.x' is not accepted\. It takes config, settings",
        ),
        ("methods", "{serch: true}", r"Option 'serch' is not accepted"),
        ("methods", "{settings: 5}", r"(?s:.*)Expected a <class 'dict'>"),
        ("stages", "{per_sed: true}", r"Option 'per_sed' is not accepted\. It takes config, settings, per_seed"),
    ],
)
def test_a_mistake_in_one_of_many_entries_is_named_with_it(tmp_path, group, entry, message):
    entries = "".join(f"  {name}: {entry if name == 'B' else '{}'}\n" for name in "ABC")
    methods = "" if group == "methods" else "methods: {A: {}}\n"
    text = f"title: t\nbaseline: A\nbudget: {{steps: 1}}\n{methods}{group}:\n{entries}"
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"`{group}\.B` of the study .*{message}"):
        load_study(tmp_path / "s.yaml")
