"""What is read from finished runs."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest

from veto_pl.compare.jobs import Job
from veto_pl.compare.trials import read_trial, search_score
from veto_pl.compare.worker import _refuse_cut_short
from veto_pl.exceptions import VetoError
from veto_pl.report.run import Run

METRICS = "epoch,step,train/tokens,train/seconds/update,train/seconds/validation,validation/accuracy\n"


def a_finished_run(folder, metrics, rows="0,0,10,1.5,9,\n0,1,12,0.5,9,\n0,1,,,,0.25\n"):
    (folder / "greedy").mkdir(parents=True)
    (folder / "metrics.csv").write_text(METRICS + rows)
    (folder / "greedy/test.json").write_text(json.dumps({"metrics": metrics, "prompts": 1, "completions": 1}))
    (folder / "greedy/answers.jsonl").write_text("")
    return Job("a job", folder, (), {}, {"greedy": {}})


def test_a_metric_without_a_finite_value_is_nan(tmp_path):
    trial = read_trial("m", 1, a_finished_run(tmp_path / "a", {"accuracy": 0.5, "wild": None}), answers=2)
    assert trial.values["greedy/accuracy"] == 0.5
    assert math.isnan(trial.values["greedy/wild"])


def test_a_run_without_its_last_validation_is_not_compared(tmp_path):
    rows = "0,0,10,1.5,9,\n0,1,12,0.5,9,\n0,1,,,,0.25\n"
    for end, whole in (("", True), ("0,2,12,0.5,9,\n", False)):
        job = replace(a_finished_run(tmp_path / str(whole), {}, rows + end), settings={"budget": {"steps": 3}})
        (job.folder / "summary.json").write_text("{}")
        with nullcontext() if whole else pytest.raises(VetoError, match="last validation"):
            _refuse_cut_short(job)


def test_the_cost_leaves_validation_out(tmp_path):
    cost = read_trial("m", 1, a_finished_run(tmp_path / "a", {}), answers=2).cost
    assert (cost.steps, cost.tokens, cost.seconds) == (2, 22, 2.0)


def test_the_score_of_a_search_is_the_last_value_and_nan_without_any(tmp_path):
    job = a_finished_run(tmp_path / "a", {})
    assert search_score("validation/accuracy", [job]) == Run("a", job.folder).curves()["validation/accuracy"].values[-1]
    assert math.isnan(search_score("validation/acuracy", [job]))
