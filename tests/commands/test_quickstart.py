"""The quickstart's road in miniature: the same commands, two steps each."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import pytest

from veto_pl.commands import quickstart
from veto_pl.commands.quickstart import Progress

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quickstart"


class Text(HTMLParser):
    """The visible words of a page."""

    def __init__(self):
        super().__init__()
        self.words = []

    def handle_data(self, data):
        self.words.append(data.strip())


def test_the_quickstart_ends_with_a_table_a_report_and_a_student(tmp_path):
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    small = [
        *steps,
        "--data.train_limit=16",
        "--data.validation_limit=8",
        "--data.task.size=600",
        "--data.batch_size=8",
    ]
    command = [sys.executable, "-m", "veto_pl.commands.quickstart", "--configs", str(CONFIGS), "--", *small]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "120"}, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for word in ("teacher", "SFT", "on-policy KD", "Veto", "before (%)", "after (%)", "step 2/2", "veto-pl fit"):
        assert word in done.stdout, word

    page = Text()
    page.feed((tmp_path / "runs" / "quickstart" / "report.html").read_text())
    words = " ".join(page.words).lower()
    for title in ("training: loss", "kl to the teacher", "validation: accuracy", "schedule of β", "gradient norm"):
        assert title in words, title

    for run in ("teacher", "veto"):
        assert answers(tmp_path / "runs" / "quickstart" / run / "export") == last_validation(
            tmp_path / "runs" / "quickstart" / run / "samples.jsonl"
        ), run


def last_validation(samples):
    """The texts that a run wrote for each prompt in its last validation."""
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return {row["prompt"]: row["completion"] for row in rows if row["step"] == rows[-1]["step"]}


def answers(export):
    """What the export writes for the same prompts, in one batch."""
    from transformers import pipeline

    prompts = list(last_validation(export.parent / "samples.jsonl"))
    generate = pipeline("text-generation", model=str(export), batch_size=len(prompts))
    texts = generate(prompts, do_sample=False, max_new_tokens=12, return_full_text=False)
    return {prompt: text[0]["generated_text"] for prompt, text in zip(prompts, texts, strict=True)}


NAMES = ["teacher", "warm_start", "sft", "on_policy_kd", "veto"]


def runs(folder, stopped_at=None, *overrides):
    """The runs that a quickstart makes, each with whether it goes on, up to one that is interrupted."""
    made = []

    def call(command):
        (name,) = (name for name in NAMES if f"--run_dir={folder / name}" in command)
        made.append((name, command[-1] == "--ckpt_path=last"))
        if name == stopped_at:
            raise SystemExit(130)

    row = [1.0] * len(quickstart.COLUMNS)
    with (
        patch.object(quickstart, "veto_pl", call),
        patch.object(quickstart, "_row", lambda run, student, seconds: row),
        patch.object(quickstart, "write_report", lambda *args, **kwargs: folder / "report.html"),
    ):
        for name in NAMES:
            (folder / name).mkdir(exist_ok=True)
        try:
            quickstart.main([f"--runs={folder}", "--", *overrides])
        except SystemExit:
            assert stopped_at == made[-1][0]
    return made


@pytest.mark.parametrize("stopped_at", NAMES)
def test_a_stopped_quickstart_goes_on_where_it_stopped(stopped_at, tmp_path, capsys):
    place = NAMES.index(stopped_at)
    assert runs(tmp_path, stopped_at) == [(name, False) for name in NAMES[: place + 1]]
    assert "goes on from here" in capsys.readouterr().out
    assert runs(tmp_path) == [(stopped_at, True), *((name, False) for name in NAMES[place + 1 :])]
    assert runs(tmp_path) == [(name, False) for name in NAMES], "one that is over begins anew"


def test_with_other_options_it_begins_anew(tmp_path):
    runs(tmp_path, "sft")
    assert runs(tmp_path, None, "--seed_everything=1") == [(name, False) for name in NAMES]


def test_a_run_that_is_made_again_has_those_after_it_made_again(tmp_path):
    """They start from its export."""
    path = tmp_path / "progress.json"
    progress = Progress(path)
    for name in "abc":
        progress.run(name, [name], lambda command: None)
    called = []
    again = Progress(path)
    for name, command in zip("abc", (["a"], ["other"], ["c"]), strict=True):
        again.run(name, command, called.append)
    assert called == [["other"], ["c"]]


def test_a_damaged_record_begins_anew(tmp_path):
    path = tmp_path / "progress.json"
    for text in ("{", "[]", '{"teacher": 1}', '{"teacher": {"command": ["a"]}}'):
        path.write_text(text)
        called = []
        Progress(path).run("teacher", ["a"], called.append)
        assert called == [["a"]]


def test_the_seconds_of_all_parts_are_counted(tmp_path):
    path = tmp_path / "progress.json"
    with patch.object(quickstart.time, "perf_counter", iter([0.0, 5.0, 100.0, 102.0]).__next__):
        with pytest.raises(KeyboardInterrupt):
            Progress(path).run("teacher", ["a"], _interrupted)
        assert Progress(path).run("teacher", ["a"], lambda command: None) == 7.0


def _interrupted(command):
    raise KeyboardInterrupt
