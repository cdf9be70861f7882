"""The main job on an embedded default: a teacher, a start, and three students compared.

Every run is the command that it prints; this module only chains them and writes the comparison. It is no study of
`veto-pl compare`: here each run is shown while it learns, and Ray need not be installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from veto_pl.commands.main import main as veto_pl
from veto_pl.report import ResultTable, Run, write_report

STUDENTS = {"sft": "SFT", "on_policy_kd": "on-policy KD", "veto": "Veto"}
INTRO = """A small teacher learns to spell words backward; a smaller student, warmed up on 1,000 of the words, then goes
on in three ways with the same prompts and the same number of steps. Accuracy is the exact match on words that nobody
trained on; the KL is that of student to teacher on the student's own answers.

SFT learns from the answers of the task. The other two write their own answers and learn from the teacher's distribution
at every letter; Veto softens that target where the student does not know a letter yet."""


COLUMNS = ["before (%)", "after (%)", "KL (nats/token)", "steps", "seconds"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the teacher, the start and the students, and print how the students compare."""
    parser = argparse.ArgumentParser("python -m veto_pl.commands.quickstart", description=__doc__)
    parser.add_argument("--configs", type=Path, default=Path("configs/quickstart"))
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("overrides", nargs="*", help="options of `veto-pl fit` for every run, after `--`")
    given = parser.parse_args(arguments)
    console, started = Console(), time.perf_counter()
    students, rows = [], {}
    for name in ("teacher", "warm_start", *STUDENTS):
        console.rule(name)
        before, folder = time.perf_counter(), given.runs / name
        files = [f"--config={given.configs / file}.yaml" for file in ("base", name)]
        command = ["fit", *files, f"--run_dir={folder}", "--samples.show=false", *given.overrides]
        console.print("veto-pl " + " ".join(command), style="dim", soft_wrap=True, highlight=False)
        veto_pl(command)
        run = Run.read(folder, STUDENTS.get(name, name))
        if name != "warm_start":
            rows[run.name] = _row(run, name in STUDENTS, time.perf_counter() - before)
        if name in STUDENTS:
            students.append(run)
    table = ResultTable(COLUMNS, rows)
    report = write_report(students, given.runs / "report.html", title="Veto quickstart", table=table, intro=INTRO)
    console.rule("results")
    console.print(table.rich())
    export = given.runs / "veto" / "export"
    console.print(f"report    {report}\nstudent   {export}   (AutoModelForCausalLM.from_pretrained)", soft_wrap=True)
    console.print(f"took      {(time.perf_counter() - started) / 60:.1f} minutes")


def _row(run: Run, is_student: bool, seconds: float) -> list[float | None]:
    """Return held-out accuracy before and after (%), final KL (nats/token), steps and seconds of a run."""
    curves = run.curves()
    accuracy, steps = curves["validation/accuracy"].values, curves["train/loss"].steps[-1]
    divergence = curves["validation/reverse_kl"].values[-1] if is_student else None
    return [100 * accuracy[0] if is_student else None, 100 * accuracy[-1], divergence, int(steps), round(seconds)]


if __name__ == "__main__":
    main()
