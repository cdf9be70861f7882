"""The names of metrics that callbacks follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import lightning as L

from veto_pl.checks.setup import RunSetup
from veto_pl.core.mistakes import Mistake, did_you_mean

KNOWN_PACKAGES = ("veto_pl", "lightning")
"""Packages whose callbacks log nothing that others follow but `lr-...`."""

TRAINING = (
    "train/loss", "train/grad_norm", "train/learning_rate", "train/tokens", "train/played_turns",
    "train/completion_length",
)  # fmt: skip
"""What every run logs; what else stands under `train/` is known after the first step."""


def monitored(callbacks: Iterable[tuple[str, L.Callback]]) -> Iterator[tuple[str, str]]:
    """Yield the path of each setting that names a metric, and that name."""
    for path, callback in callbacks:
        if isinstance(name := getattr(callback, "monitor", None), str):
            yield f"{path}.monitor", name


def may_log_more(callbacks: Iterable[L.Callback]) -> bool:
    """Return whether a callback from outside this package and Lightning may log further metrics."""
    return any(type(callback).__module__.partition(".")[0] not in KNOWN_PACKAGES for callback in callbacks)


def names(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the metrics that callbacks follow are measured, else they fail at the first validation."""
    measured = setup.metrics
    known = [*measured, *TRAINING]
    never = setup.trainer.get("limit_val_batches") == 0
    for path, name in monitored(setup.callbacks.items()):
        if name in measured and never:
            yield Mistake("trainer.limit_val_batches", f"0, with `{path}: {name}`", "validations",
                          "Raise it, or follow what `train/` logs.")  # fmt: skip
        elif name not in measured and not name.startswith(("train/", "lr-")):
            yield Mistake(path, f"`{name}`", f"what the run logs, such as {', '.join(known)}", _suggestion(name, known),
                          fatal=not may_log_more(setup.callbacks.values()))  # fmt: skip


def directions(setup: RunSetup) -> Iterator[Mistake]:
    """Warn of callbacks that take the worst value of a metric for its best: they begin with `min`."""
    better = {
        f"{name.rpartition('/')[0]}/{metric}": setup.module.validation_metrics[metric]
        for name in setup.metrics
        for metric in [name.rpartition("/")[2]]
    }
    for path, name in monitored(setup.callbacks.items()):
        callback = setup.callbacks[path.removesuffix(".monitor")]
        higher, mode = getattr(better.get(name), "higher_is_better", None), getattr(callback, "mode", None)
        if higher is not None and mode in ("min", "max") and mode != (right := "max" if higher else "min"):
            yield Mistake(f"{path.removesuffix('.monitor')}.mode", f"`{mode}`, with `{name}`",
                          f"`{right}`, as {'more' if higher else 'less'} of it is better",
                          "Set it, or the worst value is taken for the best.", fatal=False)  # fmt: skip


def best_export(setup: RunSetup) -> Iterator[Mistake]:
    """Check that a checkpoint is kept as the best one where the best one is to be exported."""
    kept = any(
        getattr(callback, "monitor", None) is not None and getattr(callback, "save_top_k", 0) != 0
        for callback in setup.callbacks.values()
    )
    for path, callback in setup.callbacks.items():
        if getattr(callback, "needs_best", False) and not kept:
            yield Mistake(f"{path}.which", "`best`, and no `checkpoint.monitor`", "the metric that tells the best",
                          "Set it, with `checkpoint.mode: max` where more is better.")  # fmt: skip


def _suggestion(name: str, known: list[str]) -> str:
    """Return a suggestion by the whole name, else by its part behind the last slash or the prefix `val_`."""
    by_end = {full.rpartition("/")[2]: full for full in reversed(known)}
    found = did_you_mean(name, known) or did_you_mean(name.rpartition("/")[2].removeprefix("val_"), by_end)
    for end, full in by_end.items():
        found = found.replace(f"`{end}`", f"`{full}`")
    return found or "`model.metrics` adds others."
