"""`veto-pl compare` as a user runs it: stopped, gone on with, failing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from veto_pl.commands.main import main
from veto_pl.compare.execution import perform, prepare
from veto_pl.compare.jobs import Job
from veto_pl.exceptions import ConfigurationError, VetoError

pytestmark = pytest.mark.xdist_group("compare")  # the fixtures are dear

ROOT = Path(__file__).parents[2]
STUDY = f"""
title: a study
config: [{ROOT}/configs/debug/base.yaml]
settings:
  trainer: {{val_check_interval: 3}}
  data: {{task: {{init_args: {{test_size: 8}}}}}}
stages:
  start: {{settings: {{model: {{objective: {{class_path: SFT}}}}, trainer: {{max_steps: 3}}}}, per_seed: true}}
methods:
  fine-tuning: {{settings: {{model: {{objective: {{class_path: SFT}}}}}}}}
  Veto:
    config: [{ROOT}/configs/debug/veto.yaml]
    settings: {{model: {{student: {{class_path: Pretrained, init_args: {{path: "{{start}}/export"}}}}}}}}
baseline: fine-tuning
budget: {{steps: 3}}
seeds: [1, 2]
search: {{grid: {{model.optimizer.init_args.lr: [0.001, 0.01]}}, metric: validation/forward_kl, mode: min}}
evaluations:
  greedy: {{temperature: 0.0, max_new_tokens: 8}}
  sampled: {{temperature: 1.0, max_new_tokens: 8, num_completions: 2}}
quantities: [greedy/forward_kl, sampled/pass@2]
answers: 2
"""
SHORT = STUDY.replace("seeds: [1, 2]", "seeds: [1]").replace("  Veto:\n", "  Veto:\n    search: false\n")
COMMAND = [str(Path(sys.executable).with_name("veto-pl")), "compare", "study.yaml", "--out=out/a", "--workers=2"]


def start(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def done(folder, part=""):
    return {path: path.stat().st_mtime_ns for path in (folder / "out").glob(f"{part}**/done.json")}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A study that was stopped in the middle by a signal, and gone on with."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "study.yaml").write_text(STUDY)
    stopped = start(folder)
    deadline = time.monotonic() + 900
    while len(done(folder)) < 5 and time.monotonic() < deadline and stopped.poll() is None:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, error = stopped.communicate(timeout=600)
    before = done(folder)
    second = start(folder)
    output, errors = second.communicate(timeout=1800)
    return {
        "folder": folder,
        "stopped": (stopped.returncode, error.decode()),
        "before": before,
        "second": (second.returncode, output.decode(), errors.decode()),
    }


@pytest.mark.slow
def test_a_signal_stops_it_in_good_order(stopped):
    code, error = stopped["stopped"]
    assert code == 130
    assert error.strip().endswith("stopped. The same command goes on from here.")
    assert "Traceback" not in error
    assert 5 <= len(stopped["before"]) < 11  # three starts, four of the search, four trials


@pytest.mark.slow
def test_the_same_command_goes_on_and_repeats_nothing(stopped):
    code, output, errors = stopped["second"]
    assert code == 0, errors
    after = done(stopped["folder"])
    assert len(after) == 3 + 4 + 4
    assert {path: after[path] for path in stopped["before"]} == stopped["before"]
    assert "comparison.html" in output


@pytest.fixture(scope="module")
def finished(tmp_path_factory, local_ray):
    """A study with a single run of each kind."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("study.yaml").write_text(SHORT)
        main(["compare", "study.yaml", "--out=out/a"])
    return folder


def test_the_results_hold_every_trial(finished):
    folder = finished / "out/a"
    page, table = (folder / "comparison.html").read_text(), (folder / "comparison.md").read_text()
    assert "fine-tuning" in table
    assert "1 of 1" in table
    assert "a study" in page
    values = json.loads((folder / "trials/Veto/seed-1/sampled/test.json").read_text())["metrics"]
    assert 0 <= values["pass@2"] <= 1
    assert not list(folder.glob("**/last*.ckpt"))
    assert not list(folder.glob("search/**/test.json"))  # the search never sees the test split


@pytest.mark.usefixtures("local_ray")
def test_a_repeated_trial_is_equal_to_the_bit_and_another_setting_is_run_anew(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    trial = Path("out/a/trials/Veto/seed-1")
    first = (trial / "greedy/answers.jsonl").read_bytes(), (trial / "greedy/test.json").read_bytes()
    (trial / "done.json").unlink()
    shutil.rmtree(trial / "greedy")
    Path("study.yaml").write_text(SHORT.replace("answers: 2", "answers: 2\nconfidence: 0.9"))
    main(["compare", "study.yaml", "--out=out/a"])
    assert "trials: 1 run, " in capsys.readouterr().out
    assert ((trial / "greedy/answers.jsonl").read_bytes(), (trial / "greedy/test.json").read_bytes()) == first
    main(["compare", "study.yaml", "--out=out/a", "--only_report", "--budget.steps=4"])
    assert "0 of 1" in Path("out/a/comparison.md").read_text()


@pytest.mark.usefixtures("local_ray")
def test_a_method_that_fails_is_reported_and_the_others_finish(finished, monkeypatch):
    monkeypatch.chdir(finished)
    broken = SHORT.replace(
        "methods:", "methods:\n  broken: {settings: {data: {batch_size: -3}, model: {objective: {class_path: SFT}}}}"
    )
    Path("broken.yaml").write_text(broken)
    with pytest.raises(SystemExit) as error:
        main(["compare", "broken.yaml", "--out=out/a"])
    failed = "3 failures in the comparison; broken, lr 0.001, seed 0: `data.batch_size`"
    assert failed in str(error.value)
    table = Path("out/a/comparison.md").read_text()
    assert table.count("1 of 1") == 2
    assert "must be 1 or more, got -3" in table
    assert not Path("out/a/trials/broken/seed-1").exists()
    with pytest.raises(SystemExit, match=failed):
        main(["compare", "broken.yaml", "--out=out/a", "--only_report"])
    assert Path("out/a/comparison.md").read_text().count("must be 1 or more, got -3") == 2


@pytest.mark.usefixtures("local_ray")
def test_what_no_run_has_and_a_search_without_values_are_named(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    Path("study.yaml").write_text(SHORT)
    main(["compare", "study.yaml", "--out=out/a", "--quantities=[greedy/acuracy]"])
    assert "no run has 'greedy/acuracy'" in capsys.readouterr().out
    Path("study.yaml").write_text(SHORT.replace("metric: validation/forward_kl", "metric: validation/fkl"))
    nothing = r"1 failure in .*; the search of fine-tuning: .* no run ended with a finite `validation/fkl`"
    with pytest.raises(SystemExit, match=nothing):
        main(["compare", "study.yaml", "--out=out/a"])


@pytest.mark.usefixtures("local_ray")
def test_a_point_that_fails_is_reported_and_the_others_are_chosen_from(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    Path("points.yaml").write_text(SHORT.replace("[0.001, 0.01]", "[-1.0, 0.001, 0.01]"))
    failed = r"1 failure in the comparison; fine-tuning, lr -1, seed 0: .*learning rate"
    for more in ([], ["--only_report"]):
        with pytest.raises(SystemExit, match=failed):
            main(["compare", "points.yaml", "--out=out/a", *more])
        table = Path("out/a/comparison.md").read_text()
        assert table.count("chosen of 2 (of 3, 1 has no score)") == 1
        assert "fine-tuning, lr -1, seed 0, failed: " in table
        assert table.count("1 of 1") == 2
    assert "search: 1 run, " in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(finished, monkeypatch, capfd):
    monkeypatch.chdir(finished)
    Path("occupied").write_text("")
    with pytest.raises(SystemExit, match="`--out` expected a folder to write in, got `occupied/b`: Not a directory"):
        main(["compare", "study.yaml", "--out=occupied/b"])
    assert capfd.readouterr() == ("", "")


def test_validation_rows_do_not_stand_in_for_test_rows(tmp_path):
    job = replace(a_job(tmp_path), evaluations={"greedy": {}})
    prepare(job)
    with pytest.raises(ConfigurationError, match="has none"):
        perform(job, 1)
    assert Path(tmp_path, "run/summary.json").exists()


def test_a_search_without_test_rows_is_refused_before_it_trains(tmp_path):
    job = replace(a_job(tmp_path), tested=True)
    prepare(job)
    with pytest.raises(ConfigurationError, match="has none"):
        perform(job, 1)
    assert not Path(tmp_path, "run/summary.json").exists()


def a_job(folder, **settings):
    (folder / "more.yaml").write_text("samples: {show: false}\n")
    files = (ROOT / "configs/debug/base.yaml", ROOT / "configs/debug/sft.yaml", folder / "more.yaml")
    return Job("a job", folder / "run", files, {"trainer": {"max_steps": 3}, **settings})


def test_a_run_that_a_guard_stopped_is_stopped_again(tmp_path):
    guard = {"metric": "completion_length", "above": 0.5, "patience": 2, "reason": "always", "action": "stop"}
    job = a_job(tmp_path, guards={"guards": [guard]})
    for _ in range(2):
        prepare(job)
        with pytest.raises(VetoError, match="step 2"):
            perform(job, 1)
        assert not job.is_done


def test_a_run_whose_files_change_while_it_runs_is_not_done(tmp_path):
    job = a_job(tmp_path)
    prepare(job)
    perform(job, 1)
    assert job.is_done
    (tmp_path / "run/done.json").unlink()
    (tmp_path / "more.yaml").write_text("data: {batch_size: 4}\n")
    perform(job, 1)
    assert not job.is_done
