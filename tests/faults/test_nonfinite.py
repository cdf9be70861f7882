"""A step that is not finite leaves no trace in the weights, and tells which rows it was."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.plugins import MixedPrecision

from veto_pl.callbacks import Checkpoints
from veto_pl.exceptions import ConfigurationError, NonFiniteError
from veto_pl.objectives import SFT, Sum
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Step
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.tiny import prompt_batch, tiny_models
from veto_pl.training.nonfinite import FAULTS

from .explosions import (
    BLAME,
    CASES,
    HEALTHY,
    STEPS,
    DividesByZero,
    Healthy,
    SteepAtZero,
    module_of,
    prepare,
    train,
    train_all,
)  # fmt: skip

LEFT_OUT = (STEPS[0], STEPS[2])
ALL_BAD = [["pa", "bp", "cp", "p"]] * 4


def faults(folder):
    path = Path(folder, FAULTS)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_as_if_the_step_had_not_been(case, tmp_path):
    run = train(case, prepare(tmp_path), str(tmp_path), 3)
    without = train(case, prepare(tmp_path, "without", LEFT_OUT), str(tmp_path / "without"), 2)
    assert [step["train/skipped"] for step in run["log"]] == [0, 1, 0]
    assert run["steps"] == 3
    assert same(run["weights"], without["weights"])
    assert run["log"][2]["train/loss"] == without["log"][1]["train/loss"]
    assert not same(run["weights"], train(case, prepare(tmp_path), str(tmp_path / "one"), 1)["weights"])


@pytest.mark.parametrize("case", CASES)
def test_the_rows_that_caused_it_are_named(case, tmp_path):
    run = train(case, prepare(tmp_path), str(tmp_path), 3)
    rows = faults(tmp_path)
    assert {row["step"] for row in rows} == {2}
    assert all(row["not_finite"] == BLAME[case] for row in rows)
    (said,) = run["said"]
    assert said.startswith("Step 2 was left out")
    assert str(tmp_path / FAULTS) in said
    if case == "backbone":
        assert [row["row"] for row in rows] == [4, 5, 6, 7], "no row is to blame, so all are listed"
        assert "overflowed inside the model" in said
    else:
        (row,) = rows
        assert (row["rank"], row["row"], row["prompt"]) == (0, 5, "bp>")
        assert row["completion"].startswith("pb")
        assert (len(row["prompt_ids"]), len(row["completion_ids"])) == (3, 3)
        assert "row 5 on rank 0" in said
        assert "'bp>'" in said


@pytest.mark.parametrize("case", ["loss", "sum", "backbone"])
def test_one_bad_micro_batch_leaves_out_its_whole_window(case, tmp_path):
    options = {"batch_size": 2, "accumulate_grad_batches": 2}
    run = train(case, prepare(tmp_path), str(tmp_path), 3, **options)
    without = train(case, prepare(tmp_path, "without", LEFT_OUT), str(tmp_path / "without"), 2, **options)
    assert [step["train/skipped"] for step in run["log"]] == [0, 1, 0]
    assert same(run["weights"], without["weights"])
    assert [row["row"] for row in faults(tmp_path)] == ([4, 5, 6, 7] if case == "backbone" else [5])


def test_a_healthy_run_reports_nothing(tmp_path):
    run = train("loss", prepare(tmp_path, steps=LEFT_OUT), str(tmp_path), 2)
    assert [step["train/skipped"] for step in run["log"]] == [0, 0]
    assert run["said"] == []
    assert not Path(tmp_path, FAULTS).exists()


def test_schedules_move_on(tmp_path):
    run = train(
        "loss", prepare(tmp_path), str(tmp_path), 3, module={"lr_schedule": lambda step, total: 1 - step / total}
    )
    assert [step["train/learning_rate"] for step in run["log"]] == pytest.approx([0.02, 0.02 * 2 / 3, 0.02 / 3])


RANKS = {
    "teacher, ddp": {"case": "teacher", "strategy": "ddp"},
    "gradient, fsdp2": {"case": "gradient", "strategy": "fsdp2"},
    "backbone, fsdp2": {"case": "backbone", "strategy": "fsdp2"},
    "sum, accumulation, ddp": {"case": "sum", "strategy": "ddp", "accumulate_grad_batches": 2, "batch_size": 1},
    "sum, accumulation, fsdp2": {"case": "sum", "strategy": "fsdp2", "accumulate_grad_batches": 2, "batch_size": 1},
}


@pytest.mark.xdist_group("ranks")
def test_ranks_leave_out_a_step_together(tmp_path):
    """The bad row is on the second rank: rank r takes every second row, from r on."""
    rows, without = prepare(tmp_path), prepare(tmp_path, "without", LEFT_OUT)
    runs = []
    for name, options in RANKS.items():
        runs.append({"rows": rows, "folder": str(tmp_path / name), "steps": 3, "batch_size": 2, **options})
        runs.append(
            {"rows": without, "folder": str(tmp_path / f"{name} without"), "steps": 2, "batch_size": 2, **options}
        )
    first, second = run_ranks(train_all, 2, runs)
    for i, (name, options) in enumerate(RANKS.items()):
        for results in (first, second):
            assert [step["train/skipped"] for step in results[2 * i]["log"]] == [0, 1, 0], name
        assert same(first[2 * i]["weights"], first[2 * i + 1]["weights"]), name
        listed = [(row["rank"], row["row"]) for row in faults(tmp_path / name)]
        assert listed == ([(0, 4), (0, 6), (1, 5), (1, 7)] if options["case"] == "backbone" else [(1, 5)]), name
        if options["case"] != "backbone":
            assert "row 5 on rank 1" in first[2 * i]["said"][0], name
        assert second[2 * i]["said"] == [], "the first rank speaks for all"


def test_the_run_stops_after_so_many_in_a_row_and_keeps_its_weights(tmp_path):
    rows = prepare(tmp_path, steps=[HEALTHY, *ALL_BAD])
    checkpoint = Checkpoints(dirpath=str(tmp_path / "kept"))
    with pytest.raises(NonFiniteError) as stopped:
        train(
            "loss", rows, str(tmp_path), 5, module={"skip_limit": 3}, enable_checkpointing=True, callbacks=[checkpoint]
        )
    message = str(stopped.value)
    assert "stops at step 3: 3 steps in a row" in message
    assert "`model.skip_limit`" in message
    good = train("loss", rows, str(tmp_path / "good"), 1)["weights"]
    kept = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=False)
    assert same(good, {name.removeprefix("student.model."): weight for name, weight in kept["state_dict"].items()})
    assert kept["global_step"] == 3
    assert {row["step"] for row in faults(tmp_path)} == {2, 3, 4}


def test_a_good_step_between_begins_the_count_anew(tmp_path):
    rows = prepare(tmp_path, steps=[ALL_BAD[0], HEALTHY, ALL_BAD[0], HEALTHY, ALL_BAD[0]])
    run = train("loss", rows, str(tmp_path), 5, module={"skip_limit": 2})
    assert [step["train/skipped"] for step in run["log"]] == [1, 0, 1, 0, 1]


def test_a_resumed_run_goes_on_counting(tmp_path):
    rows = prepare(tmp_path, steps=ALL_BAD)
    checkpoint = Checkpoints(dirpath=str(tmp_path / "kept"))
    train("loss", rows, str(tmp_path), 2, module={"skip_limit": 3}, enable_checkpointing=True, callbacks=[checkpoint])
    with pytest.raises(NonFiniteError, match="stops at step 2: 3 steps in a row"):
        train(
            "loss", rows, str(tmp_path), 4, module={"skip_limit": 3}, ckpt_path=str(tmp_path / "kept" / "last.ckpt")
        )  # fmt: skip


def test_only_the_first_steps_are_warned_about(tmp_path):
    rows = prepare(tmp_path, steps=ALL_BAD * 3)
    run = train("loss", rows, str(tmp_path), 12, module={"skip_limit": 20})
    assert len(run["said"]) == 10
    assert run["said"][-1].endswith(f"From now on only {FAULTS} tells.")
    assert len(faults(tmp_path)) == 48


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_looks_for_its_scale_is_left_to_it(fused, tmp_path):
    """From 2^40 on, each step halves the scale until gradients fit into float16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run = train(
        "gradient", prepare(tmp_path, steps=[HEALTHY] * 40), str(tmp_path), 40,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)], gradient_clip_val=None,
        module={"skip_limit": 2, "optimizer": lambda p: torch.optim.AdamW(p, lr=0.02, fused=fused)},
    )  # fmt: skip
    skipped = [step["train/skipped"] for step in run["log"]]
    assert skipped == sorted(skipped, reverse=True), "once the scale is found, every step is taken"
    assert 5 < sum(skipped) < 40
    assert scaler.get_scale() == 2.0 ** (40 - sum(skipped))
    assert not Path(tmp_path, FAULTS).exists()
    assert all(weight.isfinite().all() for weight in run["weights"].values())


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_a_loss_that_is_not_finite_counts(fused, tmp_path):
    start = module_of("loss")
    start.configure_model()
    with pytest.raises(NonFiniteError):
        train(
            "loss", prepare(tmp_path, steps=ALL_BAD), str(tmp_path), 4,
            plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))], gradient_clip_val=None,
            module={"skip_limit": 3, "optimizer": lambda p: torch.optim.AdamW(p, lr=0.02, fused=fused)},
        )  # fmt: skip


def test_under_a_scaler_a_gradient_that_no_scale_helps_counts_in_the_end(tmp_path):
    with pytest.raises(NonFiniteError):
        train(
            "gradient", prepare(tmp_path, steps=ALL_BAD * 4), str(tmp_path), 16,
            plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))],
            module={"skip_limit": 3},
        )  # fmt: skip
    assert {row["step"] for row in faults(tmp_path)} == {9, 10, 11}


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(ConfigurationError, match=r"`model\.skip_limit` must be at least 1"):
        module_of("loss", skip_limit=limit)


WORDS = st.lists(st.text("abp", min_size=1, max_size=4), min_size=1, max_size=5)


@given(WORDS)
def test_marks_are_on_the_rows_with_the_bad_letter_and_on_no_other(words):
    models = tiny_models()
    batch = prompt_batch(models, [">"] * len(words), words)
    other = Healthy()
    objective = Sum(terms={"a": DividesByZero(), "b": SteepAtZero(rollout=other), "c": SFT()})
    rollouts = {source: source(batch, models, Step(0, 1)) for source in objective.sources}
    marks = objective.loss(rollouts, models, Step(0, 1)).faults
    bad = ["p" in word for word in words]
    assert marks[FromDataset()].loss.tolist() == bad
    assert marks[FromDataset()].gradient.tolist() == bad
    assert not marks[other].loss.any()
    assert marks[other].gradient.tolist() == bad


def test_the_command_ends_with_one_message_and_a_checkpoint(tmp_path):
    """A temperature so small that all logits overflow."""
    from cli.conftest import tiny_config, veto_pl

    config = tiny_config(tmp_path)
    config["model"] |= {"objective": {"class_path": "SFT", "init_args": {"temperature": 1e-39}}, "skip_limit": 2}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    done = veto_pl("fit", "--config", path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "veto-pl: The run stops at step 1: 2 steps in a row had a loss or gradient that is not finite." in done.stderr
    )
    run = tmp_path / "run"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert len(faults(run)) == 8
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped"].startswith("NonFiniteError: The run stops at step 1")
    assert summary["skipped_steps"] == 1
    assert all(value is None or not isinstance(value, float) or math.isfinite(value) for value in summary.values())
