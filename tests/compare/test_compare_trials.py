"""What is read from finished runs."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest

from veto_pl.compare.execution import _refuse_cut_short
from veto_pl.compare.jobs import Job, label
from veto_pl.compare.study import SettingSearch
from veto_pl.compare.trials import read_search, read_trial, search_score
from veto_pl.exceptions import DataError, VetoError
from veto_pl.report.run import Run

METRICS = "epoch,step,train/tokens,train/seconds/update,train/seconds/validation,validation/accuracy\n"


def a_finished_run(folder, metrics, rows="0,0,10,1.5,9,\n0,1,12,0.5,9,\n0,1,,,,0.25\n"):
    (folder / "greedy").mkdir(parents=True)
    (folder / "metrics.csv").write_text(METRICS + rows)
    (folder / "greedy/test.json").write_text(json.dumps({"metrics": metrics, "prompts": 1, "completions": 1}))
    (folder / "greedy/answers.jsonl").write_text("")
    (folder / "summary.json").write_text('{"steps": 2, "skipped_steps": 1}')
    return Job("a job", folder, (), {}, {"greedy": {}})


def test_a_metric_without_a_finite_value_is_nan(tmp_path):
    trial = read_trial("m", 1, a_finished_run(tmp_path / "a", {"accuracy": 0.5, "wild": None}), answers=2)
    assert trial.values["greedy/accuracy"] == 0.5
    assert math.isnan(trial.values["greedy/wild"])


def test_a_run_without_its_last_validation_is_not_compared(tmp_path):
    rows = "0,0,10,1.5,9,\n0,1,12,0.5,9,\n0,1,,,,0.25\n"
    for end, whole in (("", True), ("0,2,12,0.5,9,\n", False)):
        job = replace(a_finished_run(tmp_path / str(whole), {}, rows + end), settings={"budget": {"steps": 3}})
        (job.folder / "summary.json").write_text('{"skipped_steps": 0}')
        with nullcontext() if whole else pytest.raises(VetoError, match="last validation"):
            _refuse_cut_short(job)


def test_the_cost_leaves_validation_out(tmp_path):
    cost = read_trial("m", 1, a_finished_run(tmp_path / "a", {}), answers=2).cost
    assert (cost.steps, cost.tokens, cost.seconds, cost.skipped) == (2, 22, 2.0, 1)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("greedy/test.json", None),
        ("greedy/test.json", '{"a": 1}'),
        ("greedy/test.json", '{"metrics": {"accuracy": "high"}}'),
        ("greedy/answers.jsonl", None),
        ("greedy/answers.jsonl", '{"tokens": ["a"]}\n'),
        ("greedy/answers.jsonl", '{"tok'),
        ("metrics.csv", None),
        ("metrics.csv", "epoch,step\n0,0\n"),
        ("metrics.csv", METRICS + "0,0\n"),
        ("summary.json", None),
        ("summary.json", "[]"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named_with_the_remedy(tmp_path, file, text):
    job = a_finished_run(tmp_path / "a", {"accuracy": 0.5})
    path = job.folder / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError) as error:
        read_trial("m", 1, job, answers=2)
    assert str(error.value).startswith("a job is finished, but a file of it is missing or damaged. ")
    assert str(path) in str(error.value)
    assert f"Remove `{job.folder / 'done.json'}`: the same command then runs it again." in str(error.value)


def test_a_search_run_without_its_metrics_is_named_too(tmp_path):
    job = a_finished_run(tmp_path / "a", {})
    (job.folder / "metrics.csv").unlink()
    with pytest.raises(DataError, match=r"metrics\.csv.*Remove"):
        search_score("validation/accuracy", [job])


LR, WD = "model.lr", "model.wd"
NAN = math.nan


@pytest.mark.parametrize(
    ("grid", "scores", "chosen", "at_edge"),
    [
        ({LR: (1, 2, 3)}, [0.1, 0.3, 0.2], {LR: 2}, False),
        ({LR: (1, 2, 3)}, [0.1, 0.2, 0.3], {LR: 3}, True),
        ({LR: (-1, 2, 3)}, [NAN, 0.3, 0.2], {LR: 2}, True),  # the least that ran
        ({LR: (3, 1, 2)}, [0.1, 0.2, 0.3], {LR: 2}, False),  # a grid may be written in any order
        ({LR: (1, 2, 3), WD: (0,)}, [0.1, 0.3, 0.2], {LR: 2, WD: 0}, False),
        ({LR: (1, 2, 3), WD: (0, 1, 2)}, [0, 0, 0, 0, 1, 0, 0, 0, 0], {LR: 2, WD: 1}, False),
        ({LR: (1, 2, 3), WD: (0, 1, 2)}, [0, NAN, 0, 0, 1, 0, 0, 0, 0], {LR: 2, WD: 1}, True),  # its neighbour failed
        ({LR: (1, 2, 3), WD: (0, 1, 2)}, [NAN, 0, NAN, 0, 1, 0, 0, 0, 0], {LR: 2, WD: 1}, False),
    ],
)
def test_a_choice_is_at_the_edge_where_a_neighbour_has_no_score(grid, scores, chosen, at_edge):
    search = SettingSearch(grid=grid)
    points = {label(point): point for point in search.points}
    found = read_search(search, dict(zip(points, scores, strict=True)))
    assert points[found.chosen] == chosen
    assert found.at_edge == at_edge
    assert len(found.ranked) == sum(map(math.isfinite, scores))


def test_points_tie_whatever_rounding_made_of_their_means():
    search = SettingSearch(grid={LR: (1, 2, 3)}, mode="min")
    points = {label(point): point for point in search.points}
    found = read_search(search, dict(zip(points, [0.5, (0.1 + 0.2) / 3, 0.1], strict=True)))
    assert (found.tied, found.chosen) == (2, "lr 3")


def test_the_score_of_a_search_is_the_last_value_and_nan_without_any(tmp_path):
    job = a_finished_run(tmp_path / "a", {})
    assert search_score("validation/accuracy", [job]) == Run("a", job.folder).curves()["validation/accuracy"].values[-1]
    assert math.isnan(search_score("validation/acuracy", [job]))
