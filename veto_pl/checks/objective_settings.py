"""What the objective is composed of, and what it is trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from veto_pl.checks.setup import RunSetup
from veto_pl.core.mistakes import Mistake, shorten
from veto_pl.core.nested import given, inside
from veto_pl.core.part import Part
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import ModelSource, Objective, Panel, RolloutSource, Schedule, TeacherContext, Writing
from veto_pl.seams.rollouts import TEACHER, setting_of
from veto_pl.training.optimizer_groups import trial_optimizers

STEPS = 100
SMALL_RATE = 1e-4
"""Below it, steps of AdamW are smaller than half of the last bit of most weights in bfloat16."""
UNSHARDED = ("bitsandbytes",)
"""Packages whose optimizers read the memory of whole weights."""
UNBOUNDED = ("clip", "importance_cap", "tau")
"""Settings whose infinity means that they are off."""


def requirements(setup: RunSetup) -> Iterator[Mistake]:
    """Check what each part requires of the run that it is in."""
    for path, part in setup.everything():
        if isinstance(part, Part):
            yield from part.requirements(setup, path)


def finite_numbers(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the objective's numbers are finite, except where infinity switches a setting off."""
    for path, value in setup.settings():
        if isinstance(value, float) and not math.isfinite(value) and not _is_off(path, value):
            yield Mistake(path, f"{value}", "a finite number", "Correct it.")


def schedule_values(setup: RunSetup) -> Iterator[Mistake]:
    """Check that every value of a schedule would be allowed as a number in its place."""
    for path, part in setup.parts():
        scheduled = [f.name for f in fields(part) if f.init] if is_dataclass(part) else []
        for name in scheduled:
            if isinstance(schedule := getattr(part, name), Schedule) and (
                fault := _first_refused_value(part, name, schedule)
            ):
                yield Mistake(f"{path}.init_args.{name}", f"a schedule that comes to {fault[0]:g}", "one that "
                              "stays among the allowed values", fault[1])  # fmt: skip


def several_completions(setup: RunSetup) -> Iterator[Mistake]:
    """Check that an objective that compares completions of a prompt gets several of them."""
    for path, part in setup.parts():
        if not isinstance(part, Objective) or not part.compares_completions:
            continue
        writings = [writing for source in part.sources for writing in source.writings()]
        counts = [writing.kept for writing in writings if writing.sampling is not None]
        if counts and max(counts) == 1:
            yield Mistake(path, f"`{type(part).__name__}`, which compares the completions of a prompt, with "
                          "`num_completions: 1`", "at least 2", "Raise it: with one there is nothing to compare.",
                          fatal=False)  # fmt: skip


def optimizer(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the optimizer, or each of several, accepts its settings, and that they are finite."""
    for place, make in trial_optimizers(setup.module.optimizer):
        try:
            made = make()
        except (TypeError, ValueError, RuntimeError) as error:
            yield Mistake(place, shorten(error, 300), "settings that the optimizer takes", "Correct them.")
            continue
        yield from _numbers_of(made, place)
        yield from _where_it_runs(setup, made, place)
        yield from _steps_that_round_away(setup, made.param_groups[0])


def _numbers_of(made: Optimizer, place: str) -> Iterator[Mistake]:
    for name, value in made.param_groups[0].items():
        if isinstance(value, float) and not math.isfinite(value):
            yield Mistake(f"{place}.init_args.{name}", f"{value}", "a finite number", "Correct it.")
    if made.param_groups[0].get("lr") == 0:
        yield Mistake(f"{place}.init_args.lr", "0", "more than 0", "With it the weights stay as they are.",
                      fatal=False)  # fmt: skip


def _where_it_runs(setup: RunSetup, made: Optimizer, place: str) -> Iterator[Mistake]:
    """Check that an optimizer whose kernels read memory themselves is not given parts of weights (FSDP2)."""
    name, package = type(made).__name__, type(made).__module__.partition(".")[0]
    chosen = setup.trainer.get("strategy")
    sharded = chosen == "fsdp2" or isinstance(chosen, ModelParallelStrategy)
    if package in UNSHARDED and sharded:
        yield Mistake(place, f"`{name}` of {package} with `fsdp2`", "an optimizer that takes parts of weights",
                      "Its kernels take whole ones. Use `ddp`, or another optimizer, such as torchao's.")  # fmt: skip
    if package in UNSHARDED and name.startswith("Paged") and setup.trainer.get("accelerator") == "cpu":
        yield Mistake(place, f"`{name}` on a CPU", "a GPU, from whose memory it moves its state",
                      f"Use `{name.removeprefix('Paged')}`.")  # fmt: skip


def greedy_rollouts(setup: RunSetup) -> Iterator[Mistake]:
    """Check that on-policy rollouts are sampled and not decoded greedily."""
    found = [(path, part) for path, part in setup.parts() if isinstance(part, RolloutSource)]
    given = [source for _, source in found]
    built = [("model.objective", source) for source in dict.fromkeys(setup.sources()) if source not in given]
    for path, source in (*found, *built):
        if not source.delegates() and any(_greedy_student(writing) for writing in source.writings()):
            yield Mistake(f"{path}.init_args.sampling", "greedy decoding (`temperature: 0` or `top_k: 1`)",
                          "samples from the student", "Greedy completions are not on-policy; "
                          "raise `temperature`.", fatal=False)  # fmt: skip


def use_of_the_models(setup: RunSetup) -> Iterator[Mistake]:
    """Check that teachers and reference are used, and that no teacher is the student."""
    module, name = setup.module, type(setup.module.objective).__name__
    for teacher in sorted(module.teacher_sources.keys() - _teachers_asked(setup)):
        what = "reads none" if not module.objective.needs_teacher else "does not ask it"
        yield Mistake(setting_of(teacher), f"a teacher for `{name}`, which {what}", "`null`",
                      "It would only take memory; leave it out.", fatal=False)  # fmt: skip
    if module.reference_source is not None and not module.objective.needs_reference:
        yield Mistake("model.reference", f"a reference for `{name}`, which reads none", "`null`",
                      "It would only take memory; leave it out.", fatal=False)  # fmt: skip
    for path, part in setup.parts():
        if not isinstance(part, Objective) or part.needs_teacher:
            continue
        if any(not panel.is_neutral for panel in given(part, Panel)):  # type: ignore[type-abstract]
            yield Mistake(f"{path}.init_args.panel", f"a panel for `{type(part).__name__}`, which reads no teacher",
                          "none", "Nobody would ask it; leave it out.", fatal=False)  # fmt: skip
    contexts = [part for _, part in setup.parts() if isinstance(part, TeacherContext)]
    # Told more, or beside others whose differences count, the student's start has something to teach.
    told = not all(context.is_neutral for context in contexts)
    if setup.stage != "fit" or told or any(panel.pool is not None for panel in module.objective.panels):
        return
    for teacher, source in module.teacher_sources.items():
        starts = list(inside(source, ModelSource))  # type: ignore[type-abstract]
        # A moving average is what it starts from, at first.
        if module.student_source in (starts if source.moves else starts[:1]):
            yield Mistake(setting_of(teacher), "the same source as `model.student`", "another model",
                          "A teacher that equals the student has nothing to teach it at first.",
                          fatal=False)  # fmt: skip


def _teachers_asked(setup: RunSetup) -> set[str]:
    """Return the names of the teachers that the objective reads or lets write, and that a validation compares with."""
    module, named = setup.module, tuple(setup.module.teacher_sources)
    measured = any(getattr(metric, "needs_teacher", False) for metric in module.validation_metrics.values())
    panels = [*module.objective.panels, *([module.panel] if measured and module.panel is not None else [])]
    asked = {teacher for panel in panels for teacher in panel.asks(named)}
    writers = {role for one in module.objective.writings(named) for role in one.writers}
    alone = {TEACHER} if module.objective.needs_teacher and not module.objective.panels else set()
    return asked | writers | alone


def _greedy_student(writing: Writing) -> bool:
    return "student" in writing.writers and writing.sampling is not None and writing.sampling.is_greedy


def _steps_that_round_away(setup: RunSetup, group: Mapping[str, Any]) -> Iterator[Mistake]:
    """Check that a student in bfloat16 has a rate at which its weights move; Adam's kind is known by its `betas`."""
    dtype, rate = getattr(setup.models["model.student"], "dtype", None), float(group.get("lr", 0))
    if "betas" in group and dtype == torch.bfloat16 and 0 < rate < SMALL_RATE:
        yield Mistake("model.student", f"bfloat16 weights at a learning rate of {rate:g}", "float32 weights, or a rate "
                      f"of at least {SMALL_RATE:g}", "Most steps would round away. Give it `dtype: float32`, and the "
                      "trainer `precision: bf16-mixed`.", fatal=False)  # fmt: skip


def _is_off(name: str, value: float) -> bool:
    return value == math.inf and name.rpartition(".")[2] in UNBOUNDED


def _first_refused_value(part: Any, name: str, schedule: Schedule) -> tuple[float, str] | None:
    """Return the first of a schedule's values that the class refuses, and why; None if it takes all or no number."""
    for step in range(STEPS + 1):
        value = schedule(step, STEPS)
        try:
            replace(part, **{name: value})
        except ConfigurationError as error:
            return value, str(error)
        except (TypeError, AttributeError):
            return None
    return None
