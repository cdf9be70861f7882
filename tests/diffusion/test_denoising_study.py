"""Studies of denoising runs: searched, tested, gone on with, and on a page."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.diffusion.tiny_denoisers import SIZES
from veto_pl.cli.denoising_cli import DenoisingCLI
from veto_pl.commands.compare import StudyRunner
from veto_pl.compare.execution import _in_subprocesses, perform, prepare
from veto_pl.compare.jobs import JobFactory
from veto_pl.compare.run_kinds import KINDS
from veto_pl.compare.study_file import load_study
from veto_pl.exceptions import ConfigurationError, DataError, VetoError
from veto_pl.report.pictures import read_picture

ROOT = Path(__file__).resolve().parents[2]
TINY = {"class_path": "RandomDenoiser", "init_args": {"settings": SIZES}}
SETTINGS = {
    "model": {"student": TINY, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
    "data": {
        "images": {"class_path": "Gratings", "init_args": {"rows": 8, "size": 4, "width": 16}},
        "batch_size": 4,
    },
    "trainer": {"accelerator": "cpu", "logger": False},
}
STUDY = {
    "title": "stripes",
    "runs": "denoising",
    "settings": SETTINGS,
    "methods": {
        "D-OPSD": {"settings": {"model": {"objective": {"class_path": "DOPSD"}, "teacher": TINY}}, "search": False},
        "SFT": {"settings": {"model": {"objective": {"class_path": "FlowMatching"}}}},
    },
    "baseline": "SFT",
    "budget": {"tokens": 32},
    "seeds": [1],
    "search": {"grid": {"model.optimizer.init_args.lr": [0.01, 0.1]}},
    "evaluations": {"few": {}, "two": {"grid": [0.0, 0.5]}},
    "answers": 4,
}


class Here:
    """Runs jobs in this process, one after another."""

    def __init__(self):
        self.ran = []

    def share(self):
        return SimpleNamespace(runs=1)

    def run(self, jobs, finished):
        for job in jobs:
            prepare(job)
            perform(job, 1)
            self.ran.append(job.name)
            finished(job, None, 0.0)
        return {}


def written(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return path


def run(folder, cluster):
    study = load_study(folder / "study.yaml")
    return StudyRunner(study, JobFactory(study, folder, folder / "out"), "veto-pl compare study.yaml", cluster).run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    written(folder)
    here = Here()
    return folder, here.ran, run(folder, here)


def test_methods_are_searched_trained_at_one_budget_and_tested(finished):
    folder, ran, found = finished
    assert not found.failures
    search = found.searches["SFT"]
    assert ran == [
        *(f"SFT, {point}, seed 0" for point in search.scores),
        "D-OPSD, seed 1",
        f"SFT, {search.chosen}, seed 1",
    ]
    assert search.metric == "validation/energy_distance"
    assert search.chosen == min(search.scores, key=search.scores.get)
    assert {trial.method: (trial.cost.tokens, trial.cost.steps) for trial in found.trials} == {
        "D-OPSD": (32, 2), "SFT": (32, 8),
    }  # fmt: skip
    for trial in found.trials:
        assert trial.values["few/energy_distance"] != trial.values["two/energy_distance"]
        assert [picture.title for picture in trial.pictures] == ["samples", "targets"]
    table = (folder / "out/comparison.md").read_text()
    assert "energy distance, few | energy distance, two | steps | states |" in table
    assert "Budget of every run: 32 states." in table
    assert not list(folder.glob("out/search/**/test.json")), "the search never sees the test split"
    assert not list(folder.glob("out/**/last.ckpt"))


def test_the_page_shows_the_samples_beside_their_targets(finished):
    folder, _, found = finished
    page = (folder / "out/comparison.html").read_text()
    shown = re.findall(r'<img src="data:image/png;base64,[^"]+" width="(\d+)" height="(\d+)" alt="([^"]+)"', page)
    assert [alt for *_, alt in shown] == ["Targets of the test", "Samples of D-OPSD", "Samples of SFT"]
    assert {(int(width), int(height)) for width, height, _ in shown} == {(4 * 5, 5)}
    assert "img-src data:" in page
    sampled, targets = found.trials[0].pictures
    assert sampled.content != targets.content


def test_a_study_goes_on_and_a_trial_that_is_repeated_is_equal_to_the_bit(finished):
    folder, *_ = finished
    trial = folder / "out/trials/SFT/seed-1"
    first = (trial / "few/test.json").read_bytes(), (trial / "few/samples/test.png").read_bytes()
    here = Here()
    run(folder, here)
    assert here.ran == []
    (trial / "done.json").unlink()
    shutil.rmtree(trial / "few")
    run(folder, here)
    assert len(here.ran) == 1
    assert ((trial / "few/test.json").read_bytes(), (trial / "few/samples/test.png").read_bytes()) == first
    assert json.loads(first[0])["samples"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": "denoisng"}, "`runs`: expected one of texts, denoising. Did you mean `denoising`"),
        ({"budget": {"turns": 3}}, "`budget` of such runs must set steps, tokens, seconds, got turns"),
        ({"quantities": ["many/energy_distance"]}, "such as few/energy_distance, got 'many/energy_distance'"),
    ],
)
def test_what_such_runs_do_not_have_is_refused(changes, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        load_study(written(tmp_path, **changes))


def test_runs_on_several_devices_are_started_as_that_kind(monkeypatch):
    started = []

    class Process:
        def __init__(self, command, env):
            started.append((command[1:], env["OMP_NUM_THREADS"]))

        def wait(self):
            return 0

    monkeypatch.setattr("subprocess.Popen", Process)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name, words in (("denoising", ["diffusion", "fit"]), ("texts", ["fit"])):
        _in_subprocesses(KINDS[name], 3)(["fit"])
        assert started.pop() == (["-m", "veto_pl", *words], "3")


def test_a_student_that_was_not_kept_is_missed(tmp_path):
    written(tmp_path)
    kind = load_study(tmp_path / "study.yaml").runs
    with pytest.raises(VetoError, match=r"last\.ckpt` is missing, from which the student is tested"):
        kind.tested_student(tmp_path)


def test_the_study_of_the_configs_tells_runs_what_they_can_use(tmp_path):
    file = ROOT / "configs/diffusion/compare.yaml"
    study = load_study(file)
    jobs = JobFactory(study, file.parent, tmp_path)
    for method in study.methods:
        job = jobs.trial(method, study.search.points[-1], 3)
        prepare(job)
        files = [f"--config={path}" for path in (*job.files, job.folder / "settings.yaml")]
        module = DenoisingCLI(files, run=False).model
        assert (type(module.objective).__name__, module.seed) == (
            "FlowMatching" if method == "SFT" else "DOPSD", 3,
        )  # fmt: skip


def test_a_file_that_is_no_picture_is_named(tmp_path):
    Path(tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"a\.png: expected a PNG file, got b'GIF89a'"):
        read_picture(tmp_path / "a.png", "a")
