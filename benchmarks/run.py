"""Runs the whole set of benchmarks, one after the other, and writes a dated record with its plots.

    python benchmarks/run.py [--quick] [--results benchmarks/results]

The record has one section per script: what it compares (the script's own words), the command, its output and the time
that it took. A script that fails is recorded as failed, and the exit status says so.
"""

import argparse
import ast
import datetime
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Benchmark:
    """One script.

    Args:
        title: heading of its section.
        script: file name.
        arguments: of the full set.
        quick: of the quick set.
        plot: name of the picture that it writes, if any.
    """

    title: str
    script: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    plot: str | None = None


BENCHMARKS = (
    Benchmark("Loss head", "loss_head.py"),
    Benchmark("Compiled loss head", "head_compiled.py", ("--rounds", "3")),
    Benchmark("Rollouts", "rollout.py", ("--rounds", "2")),
    Benchmark("Packing", "packing.py"),
    Benchmark("Whole step", "step.py", ("--steps", "2")),
    Benchmark("Data", "data.py"),
    Benchmark("Two tokenizers", "alignment.py", quick=("--rounds", "2")),
    Benchmark("Cost curves", "cost_curves.py", quick=("--rounds", "1"), plot="cost-curves.svg"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    day = f"{datetime.date.today()}"
    record = given.results / f"{day}.md"
    sections, failed = [f"# Benchmarks of {day}\n"], []
    for benchmark in BENCHMARKS:
        print(f"== {benchmark.script}", flush=True)
        section, succeeded = run(benchmark, given.quick, given.results, day)
        sections.append(section)
        failed += [] if succeeded else [benchmark.script]
        record.write_text("\n".join(sections), encoding="utf-8")
    print(record)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run(benchmark: Benchmark, quick: bool, results: Path, day: str) -> tuple[str, bool]:
    """The section of one script, and whether it succeeded."""
    arguments = [*(benchmark.quick if quick else benchmark.arguments)]
    picture = f"{day}-{benchmark.plot}" if benchmark.plot else None
    shown = ["python", f"benchmarks/{benchmark.script}", *arguments]
    if picture:
        arguments += ["--plot", str(results / picture)]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / benchmark.script), *arguments], capture_output=True, text=True, check=False
    )
    minutes = (time.perf_counter() - start) / 60
    output = done.stdout.strip() if done.returncode == 0 else f"failed:\n\n{indented(done.stderr[-2000:])}"
    parts = [
        f"## {benchmark.title}\n",
        f"{about(HERE / benchmark.script)}\n",
        f"`{' '.join(shown)}`, {minutes:.1f} minutes\n",
        f"{output}\n",
    ]
    if picture and done.returncode == 0:
        parts.append(f"![{benchmark.title}]({picture})\n")
    return "\n".join(parts), done.returncode == 0


def about(script: Path) -> str:
    """The script's description without its usage lines."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return "\n".join(line for line in text.splitlines() if not line.startswith("    ")).strip()


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


if __name__ == "__main__":
    main()
