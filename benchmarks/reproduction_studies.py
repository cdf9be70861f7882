"""The studies behind docs/reproduction.md: which commands, in which order."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veto_pl.commands.compare import run_study
from veto_pl.compare.jobs import merged
from veto_pl.compare.results import Comparison

STUDIES = Path("configs/compare")
TASKS = ("spelling", "palindromes")
SIZES = {"small": [], "large": ["students/large.yaml"], "tiny": ["students/tiny.yaml"]}
MAIN = {"SFT": "sft", "supervised KD": "supervised_kd", "on-policy KD": "on_policy_kd", "Veto": "veto"}
STUDENT = {
    "model": {
        "student": {"class_path": "Pretrained", "init_args": {"path": "{start}/export"}},
        "teacher": {"class_path": "Pretrained", "init_args": {"path": "{teacher}/export"}},
        "optimizer": {"init_args": {"lr": 4.0e-3}},
    }
}
"""What the runs of the methods are told, and the stages are not, as in `configs/compare/lead.yaml`."""
FAST = {"model": {"optimizer": {"init_args": {"lr": 1.2e-2}}}}
LOOSE = {"trainer": {"gradient_clip_val": 0.0}}
COOL = {"temperature": 0.5, "top_p": 0.5}
BETAS = (0.0, 0.8)


@dataclass(frozen=True)
class Condition:
    """What differs from `configs/compare/lead.yaml`: the runs of the methods, the teacher's training, the student."""

    settings: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    size: str = "small"


CONDITIONS = {
    "no clipping": Condition(LOOSE),
    "learning rate 1.2e-2": Condition(FAST),
    "learning rate 1.2e-2, no clipping": Condition({**FAST, **LOOSE}),
    "bf16": Condition({"trainer": {"precision": "bf16-mixed"}}),
    "unreliable teacher": Condition(teacher={"trainer": {"max_steps": 240}}),
    "temperature 0.5, top-p 0.5": Condition(
        {"model": {"objective": {"init_args": {"rollout": {"init_args": {"sampling": COOL}}}}}}
    ),
    "wider gap": Condition(size="tiny"),
}


@dataclass(frozen=True)
class Planned:
    """A study with the options that make it this one."""

    name: str
    file: Path
    options: tuple[str, ...]

    def run(self, folder: Path, workers: int | None) -> Comparison:
        """Runs it, or goes on with it, and says how anybody else can."""
        out = folder / self.name
        print(shlex.join(["veto-pl", "compare", str(self.file), f"--out={out}", *self.options]), flush=True)
        return run_study(self.file, out, overrides=self.options, workers=workers)


def planned(name: str, study: str, task: str, size: str = "small", teacher: Any = None, **entries: Any) -> Planned:
    """A study of a task, with a size of student and settings of the teacher's training."""
    stages = {
        "teacher": {"config": ["../quickstart/teacher.yaml"], "settings": teacher or {}},
        "start": {"config": [*SIZES[size], "../quickstart/warm_start.yaml"], "per_seed": True},
    }
    config = ["../quickstart/base.yaml", f"tasks/{task}.yaml"]
    options = {"title": name.replace("-", " ").capitalize(), "config": config, "stages": stages, **entries}
    return Planned(name, STUDIES / f"{study}.yaml", tuple(f"--{key}={_text(to)}" for key, to in options.items()))


def _text(value: Any) -> str:
    """An option's value on the command line: text stands there as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def all_studies() -> Iterator[Planned]:
    """Everything, what tells most first."""
    yield from (order(task, "small") for task in TASKS)
    yield from (planned(f"reverse-{task}", "reverse", task) for task in TASKS)
    yield from (order(task, "large") for task in TASKS)
    for condition in CONDITIONS:
        yield from (lead(task, condition) for task in TASKS)


def quick_studies() -> Iterator[Planned]:
    """Both tasks, one size, the main methods, two seeds, no search."""
    entries = {
        "methods": _methods(MAIN),
        "test": _ratios(),
        "seeds": [1, 2],
        "student": STUDENT,
        "search": {"grid": {}},
    }
    yield from (planned(f"order-{task}-small", "order", task, **entries) for task in TASKS)


def order(task: str, size: str) -> Planned:
    """All methods with the small student, the main ones with others."""
    entries: dict[str, Any] = {"test": _ratios()}
    if size != "small":
        entries["methods"] = _methods(MAIN)
    return planned(f"order-{task}-{size}", "order", task, size, **entries)


def lead(task: str, condition: str) -> Planned:
    """Veto against on-policy distillation under a condition."""
    of = CONDITIONS[condition]
    name = f"lead-{task}-{'-'.join(condition.replace(',', '').split())}"
    return planned(name, "lead", task, of.size, of.teacher, student=merged(STUDENT, of.settings))


def _methods(names: dict[str, str]) -> dict[str, Any]:
    return {name: {"config": [f"methods/{file}.yaml"]} for name, file in names.items()}


def _ratios() -> dict[str, Any]:
    """The test measures how far the target reaches above the student, beside the default metrics."""
    kinds: Sequence[str] = ("mean", "largest")
    plain = ["Accuracy", "MeanReward", "StudentEntropy", "ForwardKL", "ReverseKL", "DistinctN", "PassCurve"]
    metrics: list[Any] = [{"class_path": f"veto_pl.metrics.{name}"} for name in plain]
    metrics += [
        {"class_path": "veto_pl.metrics.TargetRatio", "init_args": {"beta": beta, "over": over}}
        for beta in BETAS
        for over in kinds
    ]
    return {"model": {"metrics": metrics}}
