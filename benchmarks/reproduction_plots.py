"""The pictures of docs/reproduction.md: seeds, means and intervals, study by study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reproduction_claims import ACCURACY, interval
from reproduction_studies import CONDITIONS, TASKS, lead

from veto_pl.charts import Row, forest_plot, standalone
from veto_pl.compare.results import Comparison, Estimate
from veto_pl.compare.statistics import contrast

WIDTH = 560.0


def write_plots(found: Mapping[str, Comparison], folder: Path) -> list[Path]:
    """Writes a picture per study that was run, and the map of each task; returns their files."""
    pictures: dict[str, str] = {}
    for name, of in found.items():
        if name.startswith("order"):
            pictures[f"reproduction-{name}"] = _methods(of, ACCURACY, 100.0, "accuracy (%)")
        elif name.startswith("reverse"):
            pictures[f"reproduction-{name}"] = _methods(of, "sampled/student_entropy", 1.0, "student's entropy (nats)")
    for task in TASKS:
        pairs = {c: found[lead(task, c).name] for c in CONDITIONS if lead(task, c).name in found}
        if pairs:
            pictures[f"reproduction-lead-{task}"] = _lead(pairs, task)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, picture in pictures.items():
        files.append(folder / f"{name}.svg")
        files[-1].write_text(standalone(picture), encoding="utf-8")
    return files


def _methods(of: Comparison, quantity: str, factor: float, label: str) -> str:
    rows = []
    for method in of.methods:
        seeds = {t.seed: factor * t.values[quantity] for t in of.of(method)}
        rows.append(_row(method, seeds, of.estimates[method, quantity], factor))
    return forest_plot(rows, of.title, label, width=WIDTH)


def _lead(pairs: Mapping[str, Comparison], task: str) -> str:
    rows = []
    for condition, of in pairs.items():
        veto, plain = ({t.seed: t.values[ACCURACY] for t in of.of(m)} for m in ("Veto", of.baseline))
        differences = {seed: 100 * (veto[seed] - plain[seed]) for seed in veto.keys() & plain.keys()}
        rows.append(_row(condition, differences, contrast(veto, plain).difference, 100.0))
    return forest_plot(
        rows, f"Veto's lead on {task}", "accuracy, Veto minus on-policy KD (points)", zero=True, width=WIDTH
    )


def _row(name: str, seeds: dict[int, float], mean: Estimate, factor: float) -> Row:
    low, high = factor * mean.low, factor * mean.high
    return Row(name, seeds, factor * mean.mean, low, high, interval(mean, factor))
