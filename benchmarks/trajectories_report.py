"""What the runs of `trajectories.py` say: means and differences with intervals over seeds, and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import trajectories_abacus as abacus
from trajectories_curriculum import ARMS
from trajectories_runs import Finished

from veto_pl.charts import Curve, curve_chart, standalone
from veto_pl.compare.results import Estimate
from veto_pl.compare.statistics import contrasts, estimate

Looks = Sequence[Mapping[str, Any]]
Runs = Mapping[int, Mapping[str, Any]]
"""Seed -> what a run has found."""
Measures = Mapping[str, tuple[Callable[[Looks], float], float]]
"""What it is called -> a number of the looks of a run, and a factor."""


def rise(by_turn: Sequence[float]) -> float:
    """The slope of a quantity over the turns, by least squares; turns that no episode has are left out."""
    points = [(turn, value) for turn, value in enumerate(by_turn) if math.isfinite(value)]
    turns, values = (torch.tensor(side, dtype=torch.float64) for side in zip(*points, strict=True))
    centred = turns - turns.mean()
    return float((centred * values).sum() / centred.square().sum())


def area(looks: Looks) -> float:
    """The mean of the KL of an episode over the turns of the student, by trapezia."""
    parts = [(b["turns"] - a["turns"]) * (a["kl"] + b["kl"]) / 2 for a, b in pairwise(looks)]
    return sum(parts) / looks[-1]["turns"]


def turns_to(looks: Looks, success: float) -> float:
    """The student's turns until a share of episodes succeeds, on straight lines; all of them where it never does."""
    if looks[0]["success"] >= success:
        return 0.0
    for a, b in pairwise(looks):
        if b["success"] >= success:
            share = (success - a["success"]) / (b["success"] - a["success"])
            return a["turns"] + share * (b["turns"] - a["turns"])
    return float(looks[-1]["turns"])


SHARES = {"half of the episodes succeed": 0.5, "a quarter of them does": 0.25, "two thirds of them do": 2 / 3}
CURRICULUM: Measures = {
    "(b) KL of an episode, mean over the student's turns (nats)": (area, 1.0),
    "KL of an episode at the end (nats)": (lambda looks: looks[-1]["kl"], 1.0),
    **{f"(c) thousands of turns until {so}": (partial(turns_to, success=of), 1e-3) for so, of in SHARES.items()},
    "(d) success at the end (%)": (lambda looks: looks[-1]["success"], 100.0),
    "thousands of the student's turns": (lambda looks: looks[-1]["turns"], 1e-3),
    "thousands of the student's tokens": (lambda looks: looks[-1]["tokens"], 1e-3),
    "updates": (lambda looks: looks[-1]["updates"], 1.0),
}
BEFORE: Measures = {
    "success (%)": (lambda looks: looks[0]["success"], 100.0),
    "episodes with a failed call (%)": (lambda looks: looks[0]["episodes with a failed call"], 100.0),
    "(e) slope of d over the turns, episodes with a failed call": (lambda looks: looks[0]["slope with"], 1.0),
    "(e) slope of d over the turns, clean episodes": (lambda looks: looks[0]["slope without"], 1.0),
    "(e) their difference": (lambda looks: looks[0]["slope with"] - looks[0]["slope without"], 1.0),
    "d of the first turn": (lambda looks: looks[0]["d first"], 1.0),
    "d right behind a failed call": (lambda looks: looks[0]["d behind"], 1.0),
    "d of later turns with no failed call before": (lambda looks: looks[0]["d elsewhere"], 1.0),
    "(f) w right behind a failed call": (lambda looks: looks[0]["w behind"], 1.0),
    "(f) w of later turns with no failed call before": (lambda looks: looks[0]["w elsewhere"], 1.0),
    "w below 1 right behind a failed call (%)": (lambda looks: looks[0]["below 1 behind"], 100.0),
    "w below 1 in later turns with no failed call before (%)": (lambda looks: looks[0]["below 1 elsewhere"], 100.0),
}
ABACUS: Measures = {
    "(g) success at the end (%)": (lambda looks: looks[-1]["success"], 100.0),
    "episodes with a failed call at the end (%)": (lambda looks: looks[-1]["episodes with a failed call"], 100.0),
    "thousands of the student's turns": (lambda looks: looks[-1]["turns"], 1e-3),
    "thousands of the student's tokens": (lambda looks: looks[-1]["tokens"], 1e-3),
}


def of_all(runs: Runs, measure: Callable[[Looks], float]) -> dict[int, float]:
    """Seed -> what is measured of its run."""
    return {seed: float(measure(run["looks"])) for seed, run in runs.items()}


def shown(of: Estimate, factor: float = 1.0) -> str:
    """A mean with its interval."""
    mean, low, high = (f"{factor * value:.2f}" for value in (of.mean, of.low, of.high))
    return f"{mean} \\[{low}, {high}\\]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose columns, but the first, are numbers."""
    return [f"| {' | '.join(row)} |" for row in (head, [":---", *["---:"] * (len(head) - 1)], *rows)]


def compared(arms: Mapping[str, Runs], baseline: str, measures: Measures) -> list[str]:
    """A row for each measure: the mean of every arm, and by what the others differ from the baseline."""
    others, rows = [arm for arm in arms if arm != baseline], []
    for name, (measure, factor) in measures.items():
        values = {arm: of_all(runs, measure) for arm, runs in arms.items()}
        means = [f"{factor * estimate(list(of.values())).mean:.2f}" for of in values.values()]
        differences = contrasts({arm: values[arm] for arm in others}, values[baseline])
        rows.append([name, *means, *(shown(differences[arm].difference, factor) for arm in others)])
    return table(["", *arms, *(f"{arm} minus {baseline}" for arm in others)], rows)


def finished(done: Finished, study: str, arms: Sequence[str]) -> dict[str, Runs]:
    """The runs of those seeds of which every arm is done, without seed 0."""
    runs = {arm: done.of(study, arm) for arm in arms}
    seeds = sorted(set.intersection(*map(set, runs.values())) - {0})
    return {arm: {seed: of[seed] for seed in seeds} for arm, of in runs.items()}


def curriculum_report(done: Finished, study: str, title: str) -> list[str]:
    """What rules (a) to (d) say of a study with a curriculum."""
    arms, teacher = finished(done, study, ARMS), done.of(study, "teacher")[0]
    if len(begun := arms["OPD"]) < 2:
        return [f"{title}: {len(begun)} seeds are done."]
    slopes = estimate(list(of_all(begun, lambda looks: rise(looks[0]["by_turn"])).values()))
    start = estimate([run["looks"][0]["success"] for run in begun.values()])
    places = {"before": (begun, 0), **{f"{arm}, at the end": (runs, -1) for arm, runs in arms.items()}}
    by_turn = {
        name: torch.tensor([run["looks"][at]["by_turn"] for run in of.values()]) for name, (of, at) in places.items()
    }
    turns = by_turn["before"].shape[1]
    return [
        f"**{title}**, {len(begun)} seeds. The teacher succeeds in {100 * teacher['success']:.0f}% of the episodes, "
        f"the students in {shown(start, 100)}% before distillation.", "",
        f"(a) Slope of the KL over the turns, before distillation: {shown(slopes)} nats per turn.", "",
        *compared(arms, "OPD", CURRICULUM), "", "KL of a turn, in nats:", "",
        *table(["turn", *map(str, range(1, turns + 1))],
               [[name, *(f"{value:.2f}" for value in values.nanmean(0).tolist())] for name, values in by_turn.items()]),
    ]  # fmt: skip


def abacus_report(done: Finished) -> list[str]:
    """What rules (e) to (g) say."""
    arms, teacher = finished(done, "abacus", abacus.ARMS), done.of("abacus", "teacher")[0]
    if len(begun := arms["SOD"]) < 2:
        return [f"Abacus: {len(begun)} seeds are done."]
    before = {name: estimate(list(of_all(begun, of).values())) for name, (of, _) in BEFORE.items()}
    return [
        f"**Abacus**, {len(begun)} seeds. The teacher succeeds in {100 * teacher['success']:.0f}% of the episodes. The "
        "students before distillation:", "",
        *table(["", "mean"], [[name, shown(of, BEFORE[name][1])] for name, of in before.items()]), "",
        "Distilled:", "", *compared(arms, "without weights", ABACUS),
    ]  # fmt: skip


def pictures(done: Finished, study: str, title: str, folder: Path) -> list[Path]:
    """The KL of an episode and the success over the turns of the student."""
    arms, files = finished(done, study, ARMS), []
    for key, label in (("kl", "KL of an episode (nats)"), ("success", "share of episodes that succeed")):
        series = {arm: [_curve(run["looks"], key) for run in runs.values()] for arm, runs in arms.items()}
        picture = curve_chart(series, title, label, x_label="turns of the student")
        files.append(folder / f"trajectories-{study}-{key}.svg")
        files[-1].write_text(standalone(picture), encoding="utf-8")
    return files


def _curve(looks: Looks, key: str) -> Curve:
    return Curve(tuple(look["turns"] for look in looks), tuple(look[key] for look in looks))
