"""The quickstart's road in miniature: the same commands, two steps each."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

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
