"""Stop strings, as a user sees them in the files of a run."""

import csv
import json

from veto_pl.commands.main import main


def test_completions_that_a_stop_string_ends_are_finished_and_judged_without_it(config, write, tmp_path):
    """Every letter ends a text, so no text has a letter, none is cut, and no guard has anything to say."""
    sampling = {"max_new_tokens": 4, "stop": [*">abc", "<pad>", "<unk>"]}
    rollout = {"class_path": "FromStudent", "init_args": {"sampling": sampling}}
    config["model"]["objective"] = {"class_path": "SFT", "init_args": {"rollout": rollout}}
    config["model"]["evaluation"] = sampling | {"temperature": 1.0}
    config["trainer"] |= {"max_steps": 2, "val_check_interval": 2, "enable_progress_bar": True}
    config["export"] = {"folder": None}
    guard = {"metric": "unfinished", "above": 0.0, "patience": 1, "reason": "all are finished"}
    config["guards"] = {"guards": [guard], "action": "stop"}
    main(["fit", "--config", write(config)])
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["train/loss"]]
    assert [float(row["train/unfinished"]) for row in steps] == [0.0, 0.0]
    assert [float(row["train/completion_length"]) for row in steps] == [1.0, 1.0]
    assert all(float(row["validation/eos_rate"]) == 1.0 for row in rows if row["validation/eos_rate"])
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {row["completion"] for row in samples} == {""}
