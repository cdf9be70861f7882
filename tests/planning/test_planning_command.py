"""The command as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import veto_pl
from tests.planning.conftest import module, on_policy, planned
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.planning.devices import DEVICES, GIB, device
from veto_pl.planning.longest_row import longest_row
from veto_pl.planning.placement import Placement
from veto_pl.planning.run_plan import remedies
from veto_pl.training.fsdp import FullyShard

ROOT = Path(__file__).resolve().parents[2]
DEBUG = [f"--config={ROOT / 'configs' / 'debug' / name}.yaml" for name in ("base", "veto")]


def printed(capsys, *arguments):
    main(["plan", *map(str, arguments)])
    return capsys.readouterr().out


def as_json(capsys, *arguments):
    return json.loads(printed(capsys, *arguments, "--json").splitlines()[-1])


def test_a_plan_is_printed_and_nothing_is_written(tmp_path):
    done = veto_pl("plan", *DEBUG, "--device", "CPU", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "It fits." in done.stdout
    assert "* loss head" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_reached_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"No model could be read from `.*nothing`"):
        printed(capsys, *DEBUG, "--model.student=Pretrained", f"--model.student.path={tmp_path / 'nothing'}")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs/debug").glob("*.yaml") if p.stem != "base"))
def test_every_objective_can_be_planned(name, capsys):
    plan = as_json(capsys, DEBUG[0], f"--config={ROOT / 'configs' / 'debug' / name}.yaml", "--device", "CPU")
    assert plan["fits"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "H1000"], "`--device` must be one of H100-80GB"),
        (["--memory", "-1"], "`--memory` must be positive"),
        (["--share", "2"], r"`--share` must lie in \(0, 1\]"),
        (["--prompt_tokens", "0"], "prompt_tokens"),
        (["--trainer.strategy", "deepspeed"], r"`trainer\.strategy` is 'deepspeed', which cannot be planned"),
        (["--trainer.precision", "transformer-engine"], r"`trainer\.precision` is 'transformer-engine'"),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit, match=message):
        printed(capsys, *DEBUG, *arguments)


def test_the_lengths_are_the_longest_that_the_configuration_admits_unless_stated(capsys):
    longest = as_json(capsys, *DEBUG, "--trainer.devices=4", "--trainer.num_nodes=2", "--trainer.strategy=fsdp2")
    assert longest["setting"]["lengths"] == {"prompt": 8, "reference": 8, "longest": None}
    assert (longest["placement"]["kind"], longest["placement"]["ranks"]) == ("fsdp2", 8)
    assert "validation" in {part["phase"] for part in longest["memory"]}


def test_lengths_can_be_stated_and_the_device_need_not_be_here(capsys):
    short = as_json(
        capsys, *DEBUG, "--prompt_tokens=4", "--completion_tokens=3", "--trainer.accelerator=gpu",
        "--trainer.limit_val_batches=0", "--device=L40S",
    )  # fmt: skip
    assert short["setting"]["lengths"] == {"prompt": 4, "reference": 3, "longest": 3}
    assert "validation" not in {part["phase"] for part in short["memory"]}
    assert all(part["seconds"] is not None for part in short["work"])


def test_a_store_needs_no_teacher(tmp_path, capsys):
    supervised = [DEBUG[0], DEBUG[1].replace("veto", "supervised_kd")]
    main(["cache-teacher", *supervised, f"--out={tmp_path}", "--k=4", f"--run_dir={tmp_path / 'run'}"])
    capsys.readouterr()
    live = as_json(capsys, *supervised)
    rollout = ["--model.objective.rollout=FromCache", f"--model.objective.rollout.path={tmp_path}"]
    stored = as_json(capsys, *supervised, "--model.teacher=null", *rollout)
    assert stored["models"]["teacher"] is None
    assert stored["peak"]["total"] < live["peak"]["total"]


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, Placement()),
        ({"devices": "auto", "strategy": "auto"}, Placement()),
        ({"devices": 2}, Placement("ddp", 2)),
        ({"devices": "2", "num_nodes": 3, "strategy": "ddp_find_unused_parameters_true"}, Placement("ddp", 6)),
        ({"devices": [0, 1, 2], "strategy": "fsdp2"}, Placement("fsdp2", 3)),
        ({"devices": "0,1", "strategy": FullyShard(False, True)}, Placement("fsdp2", 2, True, False, True)),
    ],
)
def test_the_placement_follows_the_trainer(trainer, expected):
    assert Placement.of(trainer) == expected


def test_remedies_make_it_fit():
    built = on_policy(new=8)
    given = planned(built, prompts=16, prompt=48)
    tight = planned_with_memory(given, int(given.peak.total * 0.7))
    found = remedies(built, tight)
    assert not tight.fits
    assert all(remedy.plan.fits for remedy in found)
    assert found[0].change == "--data.batch_size 8 --trainer.accumulate_grad_batches 2"


def test_without_a_remedy_nothing_is_promised():
    built = module()
    assert remedies(built, planned_with_memory(planned(built, prompts=1), 1000)) == []


def planned_with_memory(given, memory):
    return replace(given, device=replace(given.device, memory=memory))


def test_a_stated_memory_replaces_the_known_one():
    assert device("h200", 10).memory == 10 * GIB
    assert device("h200", 10).half == DEVICES["H200"].half
    assert device("CPU").accelerator is False
    with pytest.raises(ConfigurationError):
        device("H300")


@pytest.mark.parametrize("factor", [0.8, 2.5])
def test_the_longest_row_fits_and_a_longer_one_does_not(factor):
    built = module()
    given = planned(built, prompts=8, prompt=64)
    given = planned_with_memory(given, int(given.peak.total * factor))
    assert given.fits == (factor > 1)
    longest = longest_row(built, given)
    totals = [planned(built, prompts=8, prompt=int(share * longest) - 16).peak.total for share in (1.0, 1.1)]
    assert totals[0] <= given.device.memory < totals[1]


def test_the_longest_row_has_positions_and_may_not_exist():
    built = module()
    assert longest_row(built, planned_with_memory(planned(built), 10 * GIB)) == 512
    assert longest_row(built, planned_with_memory(planned(built), 1000)) is None


def test_the_longest_row_is_told_where_it_is_asked_for(capsys):
    assert "longest_row" not in as_json(capsys, *DEBUG, "--device", "CPU")
    options = (*DEBUG, "--device", "CPU", "--longest_row")
    longest = as_json(capsys, *options)["longest_row"]
    assert f"Longest row that fits: {longest} tokens, 8 of them the completion's." in printed(capsys, *options)


MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
from plan import Case, measure
print("peaks", *[measure(case) for case in eval(sys.argv[2])])
"""


def test_the_prediction_is_what_a_run_needs(tmp_path, capsys, monkeypatch):
    """Two runs in a process of their own; every tensor is a mapping that ends with it, so the kernel counts them."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from plan import MAPPED, Case, write

    cases = [
        Case("sft", student="3M", completion=192, batch=4),
        Case("veto", student="3M", objective="veto", teacher="3M", prompt=16, completion=16, batch=4, optimizer="SGD"),
    ]
    command = [sys.executable, "-c", MEASURE, str(ROOT / "benchmarks"), repr(cases)]
    done = subprocess.run(command, env=os.environ | MAPPED, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = [int(peak) for line in done.stdout.splitlines() if line.startswith("peaks") for peak in line.split()[1:]]
    for case, peak in zip(cases, measured, strict=True):
        (tmp_path / case.name).mkdir()
        predicted = as_json(capsys, "--config", write(case, tmp_path / case.name), "--device", "CPU")
        assert predicted["peak"]["total"] == pytest.approx(peak, rel=0.2), case
