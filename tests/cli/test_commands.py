"""The commands as a user runs them."""

import csv
import json

import pytest
import torch
import yaml

from veto_pl.commands.main import main

from .conftest import WORDS, veto_pl

PLUGIN = '''
from dataclasses import dataclass

from torch import Tensor

from veto_pl.seams import Divergence


@dataclass(frozen=True)
class Hellinger(Divergence):
    """Squared Hellinger distance, as a third party writes it.

    Args:
        scale: multiplies the distance.

    References:
        arXiv 9901.00001
    """

    scale: float = 1.0

    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        return self.scale * -(0.5 * (student_logp + target_logp)).logsumexp(-1).expm1()
'''

OBJECTIVE_PLUGIN = '''
from dataclasses import dataclass

from torch import Tensor

from veto_pl.objectives import TokenObjective, TokenRows


@dataclass(frozen=True, kw_only=True)
class FocalSFT(TokenObjective):
    """Likelihood that dwells on hard tokens.

    Args:
        gamma: how much.
    """

    gamma: float = 2.0
    needs_teacher = False

    def per_token(self, rows: TokenRows) -> Tensor:
        logp = rows.token_logp()
        return -((1 - logp.exp()) ** self.gamma) * logp
'''


ROLLOUT = {"rollout": {"class_path": "FromStudent", "init_args": {"sampling": {"max_new_tokens": 4}}}}


@pytest.fixture
def plugin(tmp_path):
    """An installed third-party package: a module and an entry point."""
    package = tmp_path / "site" / "hellinger_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "hellinger.py").write_text(PLUGIN)
    (package / "focal.py").write_text(OBJECTIVE_PLUGIN)
    info = package.parent / "hellinger_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hellinger-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[veto_pl.plugins]\nhellinger = hellinger_package.hellinger\nfocal = hellinger_package.focal\n"
    )
    return package.parent


@pytest.fixture
def distilling(config):
    config["model"]["teacher"] = {
        **config["model"]["student"],
        "init_args": config["model"]["student"]["init_args"] | {"seed": 1},
    }
    config["model"]["objective"] = {
        "class_path": "Veto",
        "init_args": dict(ROLLOUT),
    }
    return config


def columns(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_fit_writes_a_run_folder_that_can_be_exported_and_loaded(distilling, write, tmp_path):
    done = veto_pl("fit", "--config", write(distilling))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    logged = columns(run / "metrics.csv")
    assert len(logged["train/loss"]) == 3
    assert logged["train/beta"] == pytest.approx([0.8, 0.8 * 2 / 3, 0.8 / 3])
    for name in ("train/kl", "train/entropy", "train/grad_norm", "train/tokens_per_second", "train/on_policy"):
        assert len(logged[name]) == 3, name
    # Validated before the first step and after the last.
    assert len(logged["validation/accuracy"]) == 2
    assert len(logged["validation/reverse_kl"]) == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["objective"]["class_path"].endswith("Veto")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {0, 3}
    assert samples[0]["prompt"] == "abc>"
    assert samples[0]["reference"] == "cba"
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    assert any((run / "tensorboard").iterdir())

    checkpoint = run / "checkpoints" / "last.ckpt"
    assert not any("teacher" in key for key in torch.load(checkpoint, weights_only=True)["state_dict"])
    exported = veto_pl("export", checkpoint, tmp_path / "student")
    assert exported.returncode == 0, exported.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = AutoModelForCausalLM.from_pretrained(run / "export")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.decode(tokenizer("abc>")["input_ids"]) == "abc>"
    assert "Veto" in (tmp_path / "student" / "README.md").read_text()


def test_the_other_commands_run_from_a_checkpoint(config, write, tmp_path, capsys):
    path, checkpoint = write(config), tmp_path / "run" / "checkpoints" / "last.ckpt"
    main(["fit", "--config", path])
    for command, shown in (("validate", "validation/accuracy"), ("test", "test/accuracy"), ("predict", "")):
        main([command, "--config", path, "--ckpt_path", str(checkpoint)])
        assert shown in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"{word}>" for word in WORDS]
    assert {"prompt", "completion", "reference", "reward"} == set(rows[0])
    with (tmp_path / "run" / "metrics.csv").open() as file:
        validated = [int(row["step"]) for row in csv.DictReader(file) if row["validation/accuracy"]]
    steps = json.loads((tmp_path / "run" / "summary.json").read_text())["steps"]
    assert (validated[0], validated[-1]) == (0, steps), "the student of the checkpoint is not the untrained one"
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples[-1]["step"] == steps


def test_a_third_party_divergence_and_objective_train_and_are_listed(distilling, write, plugin, tmp_path):
    hellinger = {"class_path": "Hellinger", "init_args": {"scale": 2}}
    terms = {
        "near": {**distilling["model"]["objective"], "init_args": {"divergence": hellinger, **ROLLOUT}},
        "likely": {"class_path": "FocalSFT"},
    }
    distilling["model"]["objective"] = {"class_path": "Sum", "init_args": {"terms": terms}}
    done = veto_pl("fit", "--config", write(distilling), path=[plugin])
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["objective"]["init_args"]["terms"]
    assert saved["near"]["init_args"]["divergence"] == {
        "class_path": "hellinger_package.hellinger.Hellinger",
        "init_args": {"scale": 2.0},
    }
    assert saved["likely"]["class_path"] == "hellinger_package.focal.FocalSFT"

    listed = veto_pl("list", "divergences", "objectives", path=[plugin]).stdout
    for shown in ("Hellinger", "9901.00001", "hellinger_package.hellinger", "FocalSFT"):
        assert shown in listed


def test_a_broken_plugin_is_named(plugin):
    (plugin / "hellinger_package" / "hellinger.py").write_text("import not_there")
    done = veto_pl("list", "divergences", path=[plugin])
    assert done.returncode == 1
    assert "`hellinger` (hellinger_package.hellinger)" in done.stderr
    assert "VETO_PL_SKIP_PLUGINS=hellinger" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_prints_every_seam_with_paper_and_summary():
    done = veto_pl("list")
    assert done.returncode == 0, done.stderr
    for name in (
        "Veto",
        "2601.07155",
        "ForwardKL",
        "GeometricBridge",
        "Linear",
        "FromStudent",
        "GSM8K",
        "PassAtK",
        "Pruned",
    ):
        assert name in done.stdout, name
    assert "Hellinger" not in done.stdout
    with pytest.raises(SystemExit, match="objectives, divergences"):
        main(["list", "objectivs"])


def test_print_config_shows_the_whole_algorithm(distilling, write, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", write(distilling), "--print_config"])
    assert not ended.value.code
    out = capsys.readouterr().out
    shown = yaml.safe_load(out)["model"]["objective"]["init_args"]
    assert shown["beta"] == {"class_path": "veto_pl.parts.schedules.Linear", "init_args": {"start": 0.8, "end": 0.0}}
    assert shown["divergence"]["class_path"] == "veto_pl.parts.divergences.ForwardKL"
    assert shown["rollout"]["init_args"]["sampling"]["max_new_tokens"] == 4
    lines = out.splitlines()
    assert lines.index("  student:") - lines.index("  objective:") < 25, "the algorithm fits on one screen"
    assert "advantage: null" in out, "an optional part that is off is shown, so that the output is a config"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.objective.beta", "-1"], "beta`: given `-1`, expected a number greater than or equal to 0."),
        (["--model.objective.rollout.sampling.top_p", "0"], "top_p`: given `0`, expected a number greater than 0."),
        (["--model.objective.beta", "x"], "beta`: given `x`, expected a number or the name of a class."),
        (["--model.objective.chunk_rows", "1.5"], "chunk_rows`: given `1.5`, expected a whole number or 'auto'."),
        (
            ["--model.objective.chunk_rows.start", "1"],
            "chunk_rows`: given `start: 1`, expected a whole number or 'auto'.",
        ),
        (
            ["--model.objective.aggregation", "row"],
            "`: given `row`, expected one of 'token', 'sequence', 'turn', 'episode'.",
        ),
        (["--budget.steps", "x"], "`budget.steps`: given `x`, expected a whole number or null."),
        (["--validate_first", "perhaps"], "`validate_first`: given `perhaps`, expected true or false."),
        (["--model.teacher", "null"], "`Veto` needs a teacher, but `model.teacher` is not set"),
    ],
)
def test_mistakes_are_named(distilling, write, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", write(distilling), *arguments])
    assert ended.value.code
    assert message in " ".join(f"{ended.value.code} {capsys.readouterr().err}".split())


@pytest.mark.slow
def test_a_run_is_repeated_exactly(distilling, write, tmp_path):
    losses = []
    for name in ("first", "second"):
        done = veto_pl("fit", "--config", write(distilling), "--run_dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
        losses.append(columns(tmp_path / name / "metrics.csv")["train/loss"])
    assert losses[0] == losses[1]
