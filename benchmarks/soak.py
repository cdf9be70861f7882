"""A long run through the real command: does anything grow?

Trains a tiny on-policy Veto run of a few thousand parameters, with a validation every 200 steps and a checkpoint every
100, and looks at the process from inside: resident memory, live Python objects and tensors, open files, threads, child
processes and the processor time of each step. After a warm-up of a quarter of the steps, a line is fitted through the
memory.

    python benchmarks/soak.py [--steps 2000] [--svg docs/images/soak.svg]

Needs Linux, for /proc.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch

ROOT = Path(__file__).resolve().parents[1]
PROBES, EVERY, CENSUS = "soak.jsonl", 10, 100


class Probe(L.Callback):
    """Appends what the process holds to `soak.jsonl` in the run folder, every ten steps."""

    def on_train_batch_start(self, trainer, *args):
        self._began = time.process_time()

    def on_train_batch_end(self, trainer, *args):
        self._seconds = [*getattr(self, "_seconds", []), time.process_time() - self._began]
        if trainer.global_step % EVERY:
            return
        seen = {"step": trainer.global_step, "seconds": statistics.median(self._seconds), **process()}
        self._seconds = []
        if trainer.global_step % CENSUS == 0:
            seen |= census()
        with Path(trainer.log_dir, PROBES).open("a") as file:
            file.write(json.dumps(seen) + "\n")


def process() -> dict[str, int]:
    """Resident kilobytes, open files, threads and children of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tasks = list(Path("/proc/self/task").iterdir())
    return {
        "resident": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(tasks),
        "children": sum(len(Path(task, "children").read_text().split()) for task in tasks),
    }


def census() -> dict[str, int]:
    """Live Python objects, and the tensors among them."""
    gc.collect()
    objects = gc.get_objects()
    return {"objects": len(objects), "tensors": sum(issubclass(type(o), torch.Tensor) for o in objects)}


@dataclass(frozen=True)
class Soak:
    """What the probes saw.

    Args:
        probes: one every ten steps.
    """

    probes: list[dict[str, float]]

    @property
    def settled(self) -> list[dict[str, float]]:
        """After the first quarter."""
        return self.probes[len(self.probes) // 4 :]

    def line(self, column: str = "resident") -> tuple[float, float]:
        """Slope, per 1,000 steps, and intercept of the least-squares line through a column after the warm-up."""
        points = [(probe["step"] / 1000, probe[column]) for probe in self.settled if column in probe]
        return statistics.linear_regression(*zip(*points, strict=True))

    def values(self, column: str) -> list[float]:
        """A column after the warm-up, in order."""
        return [probe[column] for probe in self.settled if column in probe]

    def speed(self, quarter: int) -> float:
        """Steps per second by the median step of one of four quarters."""
        size = len(self.probes) // 4
        return 1 / statistics.median(probe["seconds"] for probe in self.probes[size * (quarter - 1) : size * quarter])


def run(folder: Path, steps: int) -> Soak:
    """Trains, in a process of its own."""
    configs = [f"--config={ROOT / 'configs' / 'debug' / name}.yaml" for name in ("base", "veto")]
    options = {
        "run_dir": folder, "trainer.max_steps": steps, "trainer.val_check_interval": 200,
        "trainer.enable_model_summary": "false", "trainer.callbacks+": "soak.Probe",
        "checkpoint.every_n_train_steps": 100, "model.optimizer.init_args.lr": 1e-3,
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "veto_pl.cli.build",
        "fit",
        *configs,
        *(f"--{key}={value}" for key, value in options.items()),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The run ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Soak([json.loads(line) for line in Path(folder, PROBES).read_text().splitlines()])


def report(soak: Soak) -> str:
    """The figures, line by line."""
    lines = [f"resident memory: {soak.values('resident')[-1] / 1024:.1f} MB, {soak.line()[0]:+.0f} KB per 1,000 steps"]
    for column in ("objects", "tensors", "files", "threads", "children"):
        seen = soak.values(column)
        lines.append(f"{column}: {seen[0]} to {seen[-1]}, between {min(seen)} and {max(seen)}")
    second, last = soak.speed(2), soak.speed(4)
    speeds = f"{second:.1f} in the second quarter, {last:.1f} in the last ({last / second - 1:+.1%})"
    lines.append(f"steps per second of processor time: {speeds}")
    return "\n".join(lines)


def picture(soak: Soak) -> str:
    """The memory over the steps, as SVG."""
    from veto_pl.charts import Curve, curve_chart, standalone

    slope, intercept = soak.line()
    seen = Curve(tuple(p["step"] for p in soak.probes), tuple(p["resident"] / 1024 for p in soak.probes))
    steps = [soak.settled[0]["step"], soak.settled[-1]["step"]]
    line = Curve(tuple(steps), tuple((intercept + slope * step / 1000) / 1024 for step in steps))
    shown = {"resident memory": seen, f"line through the last three quarters: {slope:+.0f} KB per 1,000 steps": line}
    series = {name: [curve] for name, curve in shown.items()}
    return standalone(curve_chart(series, "A long run", "resident memory (MB)", width=640))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = run(Path(folder), given.steps)
    print(report(soak))
    if given.svg:
        given.svg.parent.mkdir(parents=True, exist_ok=True)
        given.svg.write_text(picture(soak))


if __name__ == "__main__":
    main()
