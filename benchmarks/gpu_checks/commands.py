"""`veto-pl fit` in processes of its own: one GPU, FSDP2 with one rank, deterministic, and killed and gone on with."""

import csv
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_checks.place import TINY, Place
from gpu_checks.verdict import Verdict

LETTERS = "abcdefgh"
RUNS = {
    "one device": [],
    "fsdp2": ["--trainer.strategy=fsdp2"],
    "fsdp2 in bf16-mixed": ["--trainer.strategy=fsdp2", "--trainer.precision=bf16-mixed"],
    "deterministic": ["--trainer.deterministic=true"],
}


def run(place: Place) -> Iterator[Verdict]:
    """Train a tiny student each way; a deterministic run that is killed has to go on bit for bit."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["veto_pl.cli.build"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = 6 if place.smoke else 30
        _write(folder, place, steps)
        for label, options in RUNS.items():
            process = _start(folder, label, options)
            process.join(120)
            word = "ran" if process.exitcode == 0 else "failed"
            said = (folder / f"{label}.log").read_text()[-300:]
            yield getattr(Verdict, word)(f"fit, {label}", *([] if word == "ran" else [said]))
        yield _goes_on(folder, place, steps // 3)
        difference = max(
            abs(one - other) for one, other in zip(_losses(folder, "one device"), _losses(folder, "fsdp2"), strict=True)
        )
        yield Verdict.judged("losses of fsdp2 beside one device", difference, most=1e-3, smoke=False)


def _goes_on(folder: Path, place: Place, killed_at: int) -> Verdict:
    """Kill a deterministic run once it has logged some steps, go on with it, and compare its losses."""
    options, metrics = RUNS["deterministic"], folder / "cut" / "metrics.csv"
    process = _start(folder, "cut", options)
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_text().count("\n") > killed_at:
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    again = _start(folder, "cut", [*options, "--ckpt_path=last"])
    again.join(120)
    whole, cut = _losses(folder, "deterministic"), _losses(folder, "cut")
    share = sum(one == other for one, other in zip(whole, cut, strict=False)) / len(whole)
    return Verdict.judged("losses alike after a kill", share, least=1.0, smoke=False, killed_at=killed_at)


def _start(folder: Path, label: str, options: list[str]) -> Any:
    line = ["fit", f"--config={folder / 'config.yaml'}", f"--run_dir={folder / label}", *options]
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_fit, args=(line, str(folder / f"{label}.log")))
    process.start()
    return process


def _fit(line: list[str], log: str) -> None:
    """In the new process: write what it says to a file, and train."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from veto_pl.commands.main import main

    main(line)


def _write(folder: Path, place: Place, steps: int) -> None:
    """The rows, and a configuration on letters; JSON is YAML."""
    texts = [LETTERS[: 3 + i % 5] for i in range(64)]
    rows = [json.dumps({"prompt": f"{text}>", "completion": text[::-1]}) + "\n" for text in texts]
    (folder / "rows.jsonl").write_text("".join(rows))
    (folder / "few.jsonl").write_text("".join(rows[:8]))

    def part(name: str, **settings: Any) -> dict[str, Any]:
        return {"class_path": name, "init_args": settings}

    def model(width: int, seed: int) -> dict[str, Any]:
        sizes = TINY | {"vocab_size": 16, "hidden_size": width, "max_position_embeddings": 64}
        return part("RandomWeights", model_type="qwen2", seed=seed, dimensions=sizes)

    rollout = part("FromStudent", sampling={"max_new_tokens": 8})
    files = {"train": str(folder / "rows.jsonl"), "validation": str(folder / "few.jsonl")}
    config = {
        "trainer": {
            "accelerator": "cpu" if place.smoke else "gpu", "devices": 1, "max_steps": steps,
            "val_check_interval": steps // 2, "check_val_every_n_epoch": None,
        },
        "data": {
            "task": part("JsonLines", prompt="prompt", completion="completion", **files),
            "batch_size": 4, "max_prompt_tokens": 16, "max_completion_tokens": 16,
        },
        "model": {
            "tokenizer": part("CharacterTokenizer", alphabet=f">{LETTERS}"),
            "student": model(32, 0), "teacher": model(48, 1), "objective": part("Veto", rollout=rollout),
            "evaluation": {"temperature": 0.0, "max_new_tokens": 8},
        },
        "samples": {"show": False},
        "checkpoint": {"every_n_train_steps": 1},
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))


def _losses(folder: Path, label: str) -> list[float]:
    with (folder / label / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
