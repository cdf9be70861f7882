"""`veto-pl diffusion fit`, and the page's own objective."""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.diffusion.tiny_denoisers import double_models, fit, module_of
from veto_pl.cli.denoising_cli import DenoisingCLI
from veto_pl.commands.main import main
from veto_pl.diffusion import FewSteps
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Step

ROOT = Path(__file__).resolve().parents[2]
DEBUG = str(ROOT / "configs" / "diffusion" / "debug.yaml")


def test_the_debug_config_runs_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    options = ["--run_dir", str(folder), "--trainer.logger", "false", "--trainer.val_check_interval", "2"]
    DenoisingCLI(["fit", "--config", DEBUG, "--trainer.max_steps", "2", *options])
    again = ["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "3"]
    DenoisingCLI([*again, "--run_dir", str(folder)])
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["model"]["objective"]["init_args"]["terms"]["d_opsd"]["class_path"].endswith("DOPSD")
    assert {path.name for path in folder.iterdir()} >= {"checkpoints", "export", "samples"}
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.skiplimit=3"], "`model.skiplimit`.*Did you mean `skip_limit`"),
        (["--files.shwon=3"], "`files.shwon`.*Did you mean `shown`"),
        (["--model.objective=SFT"], "`model.objective`: given .*expected an objective of states"),
        (["--model.objective.terms.d_opsd.rollout.grid=[0.5]"], r"grid`: `FewSteps.grid` must rise from 0"),
        (["--data.images.width=3"], r"`data.images.init_args.width`: `Gratings.width` must be at least 64"),
    ],
)
def test_mistakes_are_named_with_their_place(options, message):
    with pytest.raises(ConfigurationError, match=message):
        DenoisingCLI(["--config", DEBUG, *options], run=False)


@pytest.fixture
def step_distillation(monkeypatch):
    """The module of the page."""
    page = (ROOT / "docs" / "diffusion.md").read_text()
    (code,) = re.findall(r'^```python title="[^"]+"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    module = types.ModuleType("step_distillation")
    monkeypatch.setitem(sys.modules, "step_distillation", module)
    exec(code, vars(module))
    assert len([line for line in code.split("@dataclass")[1].splitlines() if line.strip()]) <= 18
    return module.StepDistillation


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_the_commands_of_texts_say_where_a_denoising_part_belongs(command):
    with pytest.raises(SystemExit, match="` belongs to denoising students: `veto-pl diffusion fit`"):
        main([command, "--config", DEBUG])
    with pytest.raises(SystemExit, match="`DOPSD` belongs to denoising students"):
        main(["explain", "--objective", "DOPSD"])


@pytest.mark.parametrize("command", ["plan", "explain"])
def test_what_denoising_students_do_not_have_is_refused_by_name(command):
    with pytest.raises(SystemExit, match=f"invalid choice: '{command}' .*'fit', 'validate', 'test', 'predict'"):
        main(["diffusion", command])


def test_the_whole_configuration_is_printed_and_read_back(capsys, tmp_path):
    printed = tmp_path / "printed.yaml"
    with pytest.raises(SystemExit):
        DenoisingCLI(["fit", "--config", DEBUG, "--print_config"])
    first = capsys.readouterr().out
    printed.write_text(first)
    with pytest.raises(SystemExit):
        DenoisingCLI(["fit", "--config", str(printed), "--print_config"])
    second = capsys.readouterr().out
    assert yaml.safe_load(second) == yaml.safe_load(first)
    assert yaml.safe_load(first)["guards"] == {"guards": None, "action": "warn"}


def test_a_checkpoint_is_validated_tested_and_sampled_from(tmp_path):
    folder = tmp_path / "run"
    run = ["--config", DEBUG, f"--run_dir={folder}"]
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "step-000099.png").touch()  # of an earlier run in the folder
    DenoisingCLI(["fit", *run, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"])
    for command in ("validate", "test", "predict"):
        DenoisingCLI([command, *run, "--ckpt_path=last", "--trainer.logger=false"])
    told = json.loads((folder / "test.json").read_text())
    assert (told["split"], told["samples"]) == ("test", 32)
    assert told["metrics"]["energy_distance"] > 0
    found = np.load(folder / "predictions.npz")
    assert found["samples"].shape == (32, 1, 8, 8)
    assert found["numbers"].tolist() == list(range(32))
    assert {path.name for path in (folder / "samples").iterdir()} == {
        "step-000001.png", "targets.png", "test.png", "test-targets.png",
    }  # fmt: skip


def test_a_guard_stops_a_run_and_a_budget_of_turns_is_refused(tmp_path):
    guard = "[{metric: velocity_error, above: 0.0, patience: 2, reason: it grows, action: stop}]"
    options = [
        "fit",
        "--config",
        DEBUG,
        f"--run_dir={tmp_path}",
        "--trainer.limit_val_batches=0",
        "--files.folder=null",
    ]
    DenoisingCLI([*options, f"--guards.guards={guard}"])
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["stopped"].startswith("step 2: `train/")
    assert told["skipped_steps"] == 0
    with pytest.raises(ConfigurationError, match=r"`budget\.turns`: given a limit, expected none"):
        DenoisingCLI([*options, "--budget.turns=4"])


def test_the_objective_of_the_page_is_right_and_trains(step_distillation, tmp_path):
    """A loop says where the teacher goes in two substeps."""
    models, batch = double_models()
    step = Step(0, 1)
    grid = FewSteps(grid=(0.0, 0.4))
    rows = grid(batch, models, step)
    expected = []
    for k, (start, end) in enumerate(((0.0, 0.4), (0.4, 1.0))):
        z = rows.states[:, k]
        for t in (start, (start + end) / 2):
            z = z + (end - start) / 2 * models.teacher.velocity(z, z.new_full((3,), t), batch.conditions).detach()
        expected.append((z - rows.states[:, k]) / (end - start))
    found = step_distillation(rollout=grid, substeps=2).loss({grid: rows}, models, step)
    student = models.student.velocity(rows.flat_states, rows.flat_times, rows.flat(batch.conditions))
    target = torch.stack(expected, dim=1).flatten(0, 1)
    torch.testing.assert_close(found.terms["loss"].mean(), (student - target).square().mean(), rtol=1e-6, atol=0)
    runner = fit(module_of(step_distillation()), tmp_path)
    assert float(runner.callback_metrics["train/grad_norm"]) > 0
