"""The main job on an embedded default: a teacher, a start, and three students compared.

Every run is the command that it prints; this module only chains them and writes the comparison. Where it is stopped,
the same command goes on. It is no study of `veto-pl compare`: here each run is shown while it learns, and Ray need not
be installed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from veto_pl.commands.main import main as veto_pl
from veto_pl.report import ResultTable, Run, write_report
from veto_pl.storage.atomic import replacing
from veto_pl.storage.going_on import warn_if_unwritten

STUDENTS = {"sft": "SFT", "on_policy_kd": "on-policy KD", "veto": "Veto"}
INTRO = """A small teacher learns to spell words backward; a smaller student, warmed up on 1,000 of the words, then goes
on in three ways with the same prompts and the same number of steps. Accuracy is the exact match on words that nobody
trained on; the KL is that of student to teacher on the student's own answers.

SFT learns from the answers of the task. The other two write their own answers and learn from the teacher's distribution
at every letter; Veto softens that target where the student does not know a letter yet."""


COLUMNS = ["before (%)", "after (%)", "KL (nats/token)", "steps", "seconds"]


class Progress:
    """Which runs are done, in a file, so that an interrupted quickstart goes on where it stopped.

    A run counts as done only with the same command, and with all runs before it, from which it may start.

    Args:
        path: the file; it is there as long as the quickstart is not over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: dict[str, Any] = _read(path)
        self._now: dict[str, Any] = {}

    def run(self, name: str, command: list[str], call: Callable[[list[str]], object]) -> float:
        """Run a command, or the rest of it, unless it is done. Return the seconds that all of it took."""
        before = self._before.pop(name, None)
        if before is None or before["command"] != command:
            before, self._before = None, {}
        spent = 0.0 if before is None else float(before["seconds"])
        if before is not None and before["done"]:
            self._now[name] = before
            return spent
        started, done = time.perf_counter(), False
        self._keep(name, command, spent, done=False)
        try:
            call(command if before is None else [*command, "--ckpt_path=last"])
            done = True
        finally:
            spent += time.perf_counter() - started
            self._keep(name, command, spent, done=done)
        return spent

    def finish(self) -> None:
        """Forget everything: the next quickstart begins anew."""
        self._path.unlink(missing_ok=True)

    def _keep(self, name: str, command: list[str], seconds: float, *, done: bool) -> None:
        self._now[name] = {"command": command, "seconds": seconds, "done": done}
        with warn_if_unwritten(self._path, "begins anew where it is stopped"), replacing(self._path) as temporary:
            temporary.write_text(json.dumps(self._now, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the teacher, the start and the students, and print how the students compare."""
    parser = argparse.ArgumentParser("python -m veto_pl.commands.quickstart", description=__doc__)
    parser.add_argument("--configs", type=Path, default=Path("configs/quickstart"))
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("overrides", nargs="*", help="options of `veto-pl fit` for every run, after `--`")
    given = parser.parse_args(arguments)
    console, started = Console(), time.perf_counter()
    students, rows = [], {}
    progress = Progress(given.runs / "progress.json")
    for name in ("teacher", "warm_start", *STUDENTS):
        console.rule(name)
        folder = given.runs / name
        files = [f"--config={given.configs / file}.yaml" for file in ("base", name)]
        command = ["fit", *files, f"--run_dir={folder}", "--samples.show=false", *given.overrides]
        console.print("veto-pl " + " ".join(command), style="dim", soft_wrap=True, highlight=False)
        try:
            seconds = progress.run(name, command, veto_pl)
        except (KeyboardInterrupt, SystemExit):
            console.print("The same command, such as `make quickstart`, goes on from here.")
            raise
        run = Run.read(folder, STUDENTS.get(name, name))
        if name != "warm_start":
            rows[run.name] = _row(run, name in STUDENTS, seconds)
        if name in STUDENTS:
            students.append(run)
    table = ResultTable(COLUMNS, rows)
    report = write_report(students, given.runs / "report.html", title="Veto quickstart", table=table, intro=INTRO)
    progress.finish()
    console.rule("results")
    console.print(table.rich())
    export = given.runs / "veto" / "export"
    console.print(f"report    {report}\nstudent   {export}   (AutoModelForCausalLM.from_pretrained)", soft_wrap=True)
    console.print(f"took      {(time.perf_counter() - started) / 60:.1f} minutes")


def _read(path: Path) -> dict[str, Any]:
    """Return what the file says; nothing where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: {key: run[key] for key in ("command", "seconds", "done")} for name, run in found.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _row(run: Run, is_student: bool, seconds: float) -> list[float | None]:
    """Return held-out accuracy before and after (%), final KL (nats/token), steps and seconds of a run."""
    curves = run.curves()
    accuracy, steps = curves["validation/accuracy"].values, curves["train/loss"].steps[-1]
    divergence = curves["validation/reverse_kl"].values[-1] if is_student else None
    return [100 * accuracy[0] if is_student else None, 100 * accuracy[-1], divergence, int(steps), round(seconds)]


if __name__ == "__main__":
    main()
