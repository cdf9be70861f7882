"""The main job on an embedded default: a teacher, a start, and three students compared.

Every run is the command that it prints; this module only chains them and writes the comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from veto_pl.commands.main import main as veto_pl
from veto_pl.exceptions import ConfigurationError
from veto_pl.report import ResultTable, Run, write_report

STUDENTS = {"sft": "SFT", "on_policy_kd": "on-policy KD", "veto": "Veto"}
INTRO = """A small teacher learns to spell words backward; a smaller student, warmed up on 1,000 of the words, then goes
on in three ways with the same prompts and the same number of steps. Accuracy is the exact match on words that nobody
trained on; the KL is that of student to teacher on the student's own answers.

SFT learns from the answers of the task. The other two write their own answers and learn from the teacher's distribution
at every letter; Veto softens that target where the student does not know a letter yet."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains everything that is missing and prints the comparison."""
    parser = argparse.ArgumentParser("python -m veto_pl.commands.quickstart", description=__doc__)
    parser.add_argument("--configs", type=Path, default=Path("configs/quickstart"))
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("overrides", nargs="*", help="options of `veto-pl fit` for every run, after `--`")
    given = parser.parse_args(arguments)
    if not (given.configs / "base.yaml").is_file():
        raise ConfigurationError(
            f"`--configs` must hold base.yaml, got `{given.configs}`. Run it in the repository's root."
        )
    console, started = Console(), time.perf_counter()
    seconds = {}
    for name in ("teacher", "warm_start", *STUDENTS):
        before = time.perf_counter()
        _fit(name, given.configs, given.runs, given.overrides, console)
        seconds[name] = time.perf_counter() - before
    runs = [Run.read(given.runs / name, title) for name, title in STUDENTS.items()]
    table = _results(Run.read(given.runs / "teacher"), dict(zip(STUDENTS, runs, strict=True)), seconds)
    report = write_report(runs, given.runs / "report.html", title="Veto quickstart", table=table, intro=INTRO)
    console.rule("results")
    console.print(table.rich())
    console.print(f"report    {report}", soft_wrap=True)
    console.print(
        f"student   {given.runs / 'veto' / 'export'}   (AutoModelForCausalLM.from_pretrained)", soft_wrap=True
    )
    console.print(f"took      {(time.perf_counter() - started) / 60:.1f} minutes")


def _fit(name: str, configs: Path, runs: Path, overrides: Sequence[str], console: Console) -> None:
    files = [f"--config={configs / 'base.yaml'}", f"--config={configs / f'{name}.yaml'}"]
    command = ["fit", *files, f"--run_dir={runs / name}", "--samples.show=false", *overrides]
    console.rule(name)
    console.print("veto-pl " + " ".join(command), style="dim", soft_wrap=True, highlight=False)
    veto_pl(command)


def _results(teacher: Run, students: dict[str, Run], seconds: dict[str, float]) -> ResultTable:
    """Held-out accuracy before and after, and what it took."""
    columns = ["before (%)", "after (%)", "KL (nats/token)", "steps", "seconds"]
    rows = {
        "teacher": [None, _last(teacher, "validation/accuracy", 100), None, _steps(teacher), round(seconds["teacher"])]
    }
    for name, run in students.items():
        accuracy = run.curves()["validation/accuracy"].values
        divergence = _last(run, "validation/reverse_kl")
        rows[run.name] = [100 * accuracy[0], 100 * accuracy[-1], divergence, _steps(run), round(seconds[name])]
    return ResultTable(columns, rows)


def _last(run: Run, column: str, factor: float = 1.0) -> float | None:
    curve = run.curves().get(column)
    return factor * curve.values[-1] if curve else None


def _steps(run: Run) -> int:
    return int(run.curves()["train/loss"].steps[-1]) + 1


if __name__ == "__main__":
    main()
