"""What the runs of a study are told, and when they are out of date."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.compare.jobs import JobFactory, label, merged, nested, replaced, slug
from veto_pl.compare.study import EqualBudget, Method, SettingSearch, Stage, Study
from veto_pl.compare.study_file import load_study
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
    return JobFactory(study, home, folder)


@given(SETTINGS, SETTINGS, SETTINGS)
def test_merging_is_associative_and_the_empty_mapping_is_neutral(a, b, c):
    assert merged(merged(a, b), c) == merged(a, merged(b, c))
    assert merged(a, {}) == merged({}, a) == a


@given(SETTINGS, SETTINGS)
def test_what_is_laid_over_wins(a, b):
    result = merged(a, b)
    for key, value in b.items():
        assert result[key] == value or (isinstance(value, dict) and isinstance(a.get(key), dict))


def test_another_class_inherits_nothing_and_the_same_class_everything():
    old = {"objective": {"class_path": "Veto", "init_args": {"beta": 0.5}}}
    assert merged(old, {"objective": {"class_path": "SFT"}}) == {"objective": {"class_path": "SFT"}}
    warmer = merged(old, {"objective": {"class_path": "Veto", "init_args": {"chunk_rows": 8}}})
    assert warmer["objective"]["init_args"] == {"beta": 0.5, "chunk_rows": 8}
    assert merged(old, {"objective": {"init_args": {"beta": 1}}})["objective"]["init_args"] == {"beta": 1}


def test_a_run_is_named_by_its_method_its_point_and_its_seed():
    made = jobs(a_study())
    assert made.search("A", {"model.lr": 0.1}, 0).name == "A, lr 0.1, seed 0"
    assert made.trial("A", {}, 1).name == "A, seed 1"
    names = [job.name for name in ("teacher", "start") for job in made.stages(name)]
    assert names[:2] == ["stage teacher", "stage start, seed 1"]


def test_folders_replace_their_names_and_other_braces_stay():
    settings = {"a": ["{start}/export", "{metadata[word]}"], "b": {"c": "{other}", "d": 3}}
    assert replaced(settings, {"{start}": "x/y"}) == {
        "a": ["x/y/export", "{metadata[word]}"],
        "b": {"c": "{other}", "d": 3},
    }


def test_a_run_starts_from_the_stages_that_it_names():
    made = jobs(a_study())
    alone, started = made.trial("A", {}, 2), made.trial("B", {}, 2)
    (teacher,) = made.stages("teacher")
    start = next(job for job in made.stages("start") if job.name.endswith("seed 2"))
    assert alone.stage_fingerprints == ()
    assert started.stage_fingerprints == (start.fingerprint,)
    assert start.stage_fingerprints == (teacher.fingerprint,)
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
    assert steps["budget"] == {"steps": 3, "tokens": None, "turns": None, "seconds": None}
    tokens = jobs(a_study(settings=short, budget=EqualBudget(tokens=900))).trial("A", {}, 1).settings
    turns = jobs(a_study(settings=short, budget=EqualBudget(turns=900))).trial("A", {}, 1).settings
    assert turns["budget"] == {"steps": None, "tokens": None, "turns": 900, "seconds": None}
    assert str(EqualBudget(turns=900)) == "900 turns"
    assert tokens["trainer"]["max_steps"] > 10**8
    assert tokens["budget"]["tokens"] == 900


@given(st.lists(st.floats(1e-9, 1e9) | st.integers(1, 10**9), min_size=2, max_size=4, unique=True))
def test_different_points_have_different_texts(values):
    assert len({label({"model.lr": value}) for value in values}) == len(values)


def test_points_are_written_for_people():
    assert label({"model.optimizer.init_args.lr": 1e-3, "model.wd": 0.1}) == "lr 0.001, wd 0.1"
    assert nested(("a.b.c", 1)) == {"a": {"b": {"c": 1}}}


VALID = {"title": "t", "methods": {"A": {}}, "baseline": "A", "budget": {"steps": 1}}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"baseline": "C"}, "`baseline` of a study must be one of A, got 'C'"),
        ({"seeds": [1, 1]}, "`seeds`: the numbers must be distinct"),
        ({"seeds": []}, "`seeds`: Tuple should have at least 1 item"),
        ({"seeds": [1.5]}, r"`seeds\.0`: .* got 1\.5"),
        ({"methods": {}}, "`methods`"),
        ({"methods": {"A": None}}, r"`methods\.A`"),
        ({"evaluations": {}}, "`evaluations`"),
        ({"confidence": 95.0}, "`confidence`: .* less than 1, got 95"),
        ({"answers": -1}, "`answers`"),
        ({"devices": 0}, "`devices`: .* greater than 0, got 0"),
        ({"quantities": ["grady/accuracy"]}, "`quantities` .*grady/accuracy"),
        ({"frontier": ["greedy/x", "other/y"]}, "`quantities` .*other/y"),
        ({"stages": {"a{b": {}}}, "`stages.* no brace"),
        ({"evaluations": {"../x": {}}}, "`evaluations"),
        ({"evaluations": {"export": {}}}, "`evaluations.* it names a folder"),
        ({"search": {"grid": {"model.lr": [1.0, 2.0]}, "seeds": [3]}}, "`search.seeds` must not be seeds"),
        ({"search": {"grid": {"model.lr": []}}}, r"`search\.grid\.model\.lr`"),
        ({"search": {"grid": {"model.lr": ["fast"]}}}, r"`search\.grid\.model\.lr\.0"),
        ({"budget": {}}, "`budget`"),
        ({"budget": {"steps": 1, "tokens": 2}}, "`budget` .* must set steps, tokens, turns or seconds"),
        ({"budget": {"seconds": 0.0}}, r"`budget\.seconds`"),
        ({"budget": 5}, "`budget`: .* got 5"),
        ({"methods": {"A": {"serch": True}}}, r"`methods\.A\.serch`: there is no such entry. Did you mean `search`"),
        ({"method": {"A": {}}}, "`method`: there is no such entry. Did you mean `methods`"),
        ({"stages": {"a": {"per_sed": True}}}, r"`stages\.a\.per_sed`: .* There are config, settings, per_seed"),
    ],
)
def test_a_study_that_cannot_work_is_refused(tmp_path, entries, named):
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps(VALID))
    assert load_study(file).title == "t"
    file.write_text(json.dumps(VALID | entries))
    with pytest.raises(ConfigurationError, match=f"The study `.*s.yaml` cannot be used: {named}"):
        load_study(file)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_of_the_repository_can_be_read(file):
    study = load_study(file)
    made = JobFactory(study, file.parent, Path("runs/x"))
    assert all(made.trial(method, point, 1).fingerprint for method in study.methods for point in study.search.points)


def test_options_replace_entries(tmp_path):
    file = ROOT / "configs/compare/debug.yaml"
    study = load_study(file, ["--seeds=[4,5]", "--budget.steps", "7", "--title=a: b", "--methods.SFT.search=false"])
    assert (study.seeds, study.budget, study.title) == ((4, 5), EqualBudget(steps=7), "a: b")
    assert not study.methods["SFT"].search
    assert study.methods["Veto"].search
    (points,) = [load_study(file, ['--search.grid={"data.batch_size": [4, 8]}']).search.points]
    assert [repr(point["data.batch_size"]) for point in points] == ["4", "8"]  # whole numbers stay whole
    kept = {"model": {"metrics": [{"class_path": "veto_pl.metrics.Accuracy"}], "x": {"class_path": "decimal.Decimal"}}}
    assert load_study(file, [f"--test={json.dumps(kept)}", f"--settings={json.dumps(kept)}"]).test == kept


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seeds=many"], "`seeds`"),
        (["--sedes=[1]"], "Did you mean `seeds`"),
        (["--seeds.x=1"], "`--seeds.x` expected named entries"),
        (["--seeds"], "expected options such as"),
        (["seeds=[1]"], "expected options such as"),
        (["--seeds=[1"], "line 1"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options, named):
    with pytest.raises(ConfigurationError, match=named):
        load_study(ROOT / "configs/compare/debug.yaml", options)


@pytest.mark.parametrize("text", [None, "", "a: [", "a: 1\na: 2", "- 1"])
def test_a_file_that_is_no_study_is_named(tmp_path, text):
    file = tmp_path / "s.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"s\.yaml"):
        load_study(file)
