"""Does what TCOD and SOD say of agents show with tiny ones, in `House` and with `Abacus`?

    python benchmarks/trajectories.py                          # five seeds; a run that was stopped goes on
    python benchmarks/trajectories.py --write docs/trajectories.md

The rules stand in `docs/trajectories.md`; they were written before the runs. A difference counts where its 95% interval
over seeds excludes 0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import trajectories_abacus as abacus
import trajectories_house as house
from trajectories_runs import Finished

from veto_pl.charts import Curve, curve_chart, standalone
from veto_pl.compare.results import Estimate
from veto_pl.compare.statistics import contrasts, estimate

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
Runs = Mapping[int, Mapping[str, Any]]
"""Seed -> what a run has found."""
TOLD = (
    ("success (%)", "success", 100.0),
    ("episodes with a failed call (%)", "episodes with a failed call", 100.0),
    ("(e) slope of d over the turns, episodes with a failed call", "slope with", 1.0),
    ("(e) slope of d over the turns, clean episodes", "slope without", 1.0),
    ("d of the first turn", "d first", 1.0),
    ("d right behind a failed call", "d behind", 1.0),
    ("d of later turns with no failed call before", "d elsewhere", 1.0),
    ("(f) w right behind a failed call", "w behind", 1.0),
    ("(f) w of later turns with no failed call before", "w elsewhere", 1.0),
    ("share of w below 1, right behind a failed call (%)", "below 1 behind", 100.0),
    ("share of w below 1, later turns with no failed call before (%)", "below 1 elsewhere", 100.0),
)
"""What is measured of the student before distillation: what it is called, its name in a look, and a factor."""


def shown(of: Estimate, factor: float = 1.0, digits: int = 2) -> str:
    """A mean with its interval."""
    mean, low, high = (f"{factor * value:.{digits}f}" for value in (of.mean, of.low, of.high))
    return f"{mean} \\[{low}, {high}\\]"


def rise(by_turn: Sequence[float]) -> float:
    """The slope of a quantity over the turns, by least squares; turns that no episode has are left out."""
    points = [(turn, value) for turn, value in enumerate(by_turn) if math.isfinite(value)]
    turns, values = (torch.tensor(side, dtype=torch.float64) for side in zip(*points, strict=True))
    centred = turns - turns.mean()
    return float((centred * values).sum() / centred.square().sum())


def area(looks: Sequence[Mapping[str, Any]]) -> float:
    """The mean of the KL of an episode over the turns of the student, by trapezia."""
    return sum((b["turns"] - a["turns"]) * (a["kl"] + b["kl"]) / 2 for a, b in pairwise(looks)) / max(
        looks[-1]["turns"], 1
    )


def turns_to(looks: Sequence[Mapping[str, Any]], success: float) -> float:
    """The student's turns until a share of episodes succeeds, on straight lines; all of them where it never does."""
    for a, b in pairwise(looks):
        if b["success"] >= success:
            share = (success - a["success"]) / (b["success"] - a["success"]) if a["success"] < success else 0.0
            return a["turns"] + share * (b["turns"] - a["turns"])
    return float(looks[-1]["turns"])


def of_all(runs: Runs, measure: Any) -> dict[int, float]:
    return {seed: float(measure(run["looks"])) for seed, run in runs.items()}


def rows_of(arms: Mapping[str, Runs], baseline: str, measures: Mapping[str, tuple[Any, float]]) -> list[str]:
    """A row for each measure: the mean of every arm, and what the others differ from the baseline by."""
    lines = [
        "| | "
        + " | ".join(arms)
        + " | "
        + " | ".join(f"{arm} minus {baseline}" for arm in arms if arm != baseline)
        + " |",
        "| :--- |" + " ---: |" * (2 * len(arms) - 1),
    ]
    for name, (measure, factor) in measures.items():
        values = {arm: of_all(runs, measure) for arm, runs in arms.items()}
        means = [f"{factor * estimate(list(of.values())).mean:.2f}" for of in values.values()]
        others = contrasts({arm: of for arm, of in values.items() if arm != baseline}, values[baseline])
        lines.append(
            f"| {name} | "
            + " | ".join([*means, *(shown(other.difference, factor) for other in others.values())])
            + " |"
        )
    return lines


def house_report(done: Finished) -> list[str]:
    arms = {arm: done.of("house", arm) for arm in house.ARMS}
    seeds = sorted(set.intersection(*(set(runs) for runs in arms.values())) - {0})
    arms = {arm: {seed: runs[seed] for seed in seeds} for arm, runs in arms.items()}
    if len(seeds) < 2:
        return [f"House: {len(seeds)} seeds are done."]
    first = of_all(arms["OPD"], lambda looks: rise(looks[0]["by_turn"]))
    by_turn = torch.tensor([run["looks"][0]["by_turn"] for run in arms["OPD"].values()]).nanmean(0)
    start = of_all(arms["OPD"], lambda looks: looks[0]["success"])
    measures = {
        "(b) KL of an episode, mean over the student's turns (nats)": (lambda looks: area(looks), 1.0),
        "KL of an episode at the end (nats)": (lambda looks: looks[-1]["kl"], 1.0),
        "(c) turns until half of the episodes succeed (thousands)": (lambda looks: turns_to(looks, 0.5), 1e-3),
        "(c) turns until a quarter of them do (thousands)": (lambda looks: turns_to(looks, 0.25), 1e-3),
        "(d) success at the end (%)": (lambda looks: looks[-1]["success"], 100.0),
        "student's turns (thousands)": (lambda looks: looks[-1]["turns"], 1e-3),
        "updates": (lambda looks: looks[-1]["updates"], 1.0),
        "student's tokens (thousands)": (lambda looks: looks[-1]["tokens"], 1e-3),
    }
    begun = 100 * estimate(list(start.values())).mean
    told = ", ".join(f"{value:.2f}" for value in by_turn.tolist())
    return [
        f"House, {len(seeds)} seeds. Before distillation {begun:.0f}% of the episodes succeed; KL by turn {told} nats.",
        "",
        f"(a) Slope of the KL over the turns: {shown(estimate(list(first.values())), digits=3)} nats per turn.",
        "",
        *rows_of(arms, "OPD", measures),
    ]


def abacus_report(done: Finished) -> list[str]:
    arms = {arm: done.of("abacus", arm) for arm in abacus.ARMS}
    seeds = sorted(set.intersection(*(set(runs) for runs in arms.values())) - {0})
    arms = {arm: {seed: runs[seed] for seed in seeds} for arm, runs in arms.items()}
    if len(seeds) < 2:
        return [f"Abacus: {len(seeds)} seeds are done."]
    begun = {
        name: estimate([run["looks"][0][name] for run in arms["SOD"].values()])
        for name in arms["SOD"][seeds[0]]["looks"][0]
    }
    differs = estimate(
        [run["looks"][0]["slope with"] - run["looks"][0]["slope without"] for run in arms["SOD"].values()]
    )
    measures = {
        "(g) success at the end (%)": (lambda looks: looks[-1]["success"], 100.0),
        "episodes with a failed call at the end (%)": (lambda looks: looks[-1]["episodes with a failed call"], 100.0),
        "student's turns": (lambda looks: looks[-1]["turns"], 1.0),
        "student's tokens (thousands)": (lambda looks: looks[-1]["tokens"], 1e-3),
    }
    return [
        f"Abacus, {len(seeds)} seeds, the student before distillation:",
        "",
        "| | mean |",
        "| :--- | ---: |",
        *(f"| {name} | {shown(begun[key], factor)} |" for name, key, factor in TOLD),
        f"| (e) difference of the slopes | {shown(differs)} |",
        "",
        "Distilled:",
        "",
        *rows_of(arms, "without weights", measures),
    ]


def pictures(done: Finished, folder: Path) -> list[Path]:
    """The KL of an episode and the success over the turns of the student."""
    files = []
    for key, label in (("kl", "KL of an episode (nats)"), ("success", "share of episodes that succeed")):
        series = {arm: [Curve(tuple(look["turns"] for look in run["looks"]), tuple(look[key] for look in run["looks"]))
                        for seed, run in done.of("house", arm).items() if seed] for arm in house.ARMS}  # fmt: skip
        if any(series.values()):
            files.append(folder / f"trajectories-{key}.svg")
            files[-1].write_text(
                standalone(curve_chart(series, "House", label, x_label="turns of the student")), encoding="utf-8"
            )
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="0 is the one that sizes were chosen by"
    )
    parser.add_argument("--studies", nargs="+", choices=("house", "abacus"), default=("house", "abacus"))
    parser.add_argument("--out", type=Path, default=Path("runs/trajectories"), help="where models and runs are kept")
    parser.add_argument("--write", type=Path, help="the page whose results are replaced, docs/trajectories.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = Finished(given.out / "runs.jsonl")
    for seed in given.seeds:  # both studies of a seed before the next one, so that those that are done have all arms
        for name in given.studies:
            study = {"house": house, "abacus": abacus}[name]
            study.run(done, given.out, [seed], study.Sizes())
    text = "\n".join([*house_report(done), "", *abacus_report(done)])
    print(text)
    if given.write is not None:
        page = given.write.read_text(encoding="utf-8")
        text += "".join(
            f"\n\n![{file.stem}](images/{file.name})" for file in pictures(done, given.write.parent / "images")
        )
        before, _, rest = page.partition(BEGIN)
        given.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
