"""Does Veto's lead over on-policy distillation come from updates that round away?

    python benchmarks/rounding.py                 # 80 runs; a run that was stopped goes on where it stopped
    python benchmarks/rounding.py --rates 2e-5    # one rate

The paper trains bfloat16 weights by AdamW at 1e-5, where most steps are smaller than half of a weight's last bit. Here
`configs/compare/rounding.yaml` does that with the small student, on both tasks, with float32 weights beside it.

The rules, written before any run. At each rate, over five seeds, a difference counts where its 95% interval excludes 0:

1. rounding matters, if on both tasks on-policy KD in float32 differs from on-policy KD in bfloat16, in greedy accuracy
   or in forward KL;
2. the paper's order shows, if on both tasks Veto is above on-policy KD in greedy accuracy, in bfloat16;
3. it comes from rounding, if it shows and does not show in float32 on either task.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from reproduction_claims import ACCURACY, interval
from reproduction_studies import STUDENT, TASKS, Planned, planned

from veto_pl.compare.jobs import merged
from veto_pl.compare.results import Comparison, Estimate
from veto_pl.compare.statistics import contrast

RATES = {"2e-5": "four weights in five", "5e-5": "half of the weights"}
"""Learning rates, and which weights of a student's start have a last bit of more than twice as much."""
KL = "greedy/forward_kl"


def study(task: str, rate: float) -> Planned:
    """Four runs for each seed: both methods, in both dtypes."""
    own = {"student": {"init_args": {"dtype": "bfloat16"}}, "optimizer": {"init_args": {"lr": rate}}}
    return planned(f"rounding-{task}-{rate:g}", "rounding", task, student=merged(STUDENT, {"model": own}))


def difference(comparison: Comparison, one: str, other: str, quantity: str) -> Estimate:
    """One method minus another, with an interval over seeds."""
    first, second = ({t.seed: t.values[quantity] for t in comparison.of(name)} for name in (one, other))
    return contrast(first, second, comparison.confidence).difference


def excludes_zero(of: Estimate) -> bool:
    return of.low > 0 or of.high < 0


def conclusions(found: Mapping[str, Comparison]) -> dict[str, bool]:
    """Apply the rules to the comparisons of one rate, by task."""
    pairs = {"bfloat16": ("Veto", "on-policy KD"), "float32": ("Veto, float32", "on-policy KD, float32")}
    leads = {
        dtype: [difference(comparison, *pair, ACCURACY).low > 0 for comparison in found.values()]
        for dtype, pair in pairs.items()
    }
    matters = [
        any(excludes_zero(difference(c, "on-policy KD, float32", "on-policy KD", q)) for q in (ACCURACY, KL))
        for c in found.values()
    ]
    shows = all(leads["bfloat16"])
    return {
        "rounding matters": all(matters),
        "the paper's order shows": shows,
        "it comes from rounding": shows and not any(leads["float32"]),
    }


def report(rate: str, found: Mapping[str, Comparison]) -> str:
    """The means of accuracy, the differences in accuracy and forward KL, and what follows by the rules."""
    lines = [f"rate {rate}, below half of the last bit of {RATES.get(rate, 'some weights')}:"]
    for task, comparison in found.items():
        means = ", ".join(f"{m} {100 * comparison.estimates[m, ACCURACY].mean:.1f}" for m in comparison.methods)
        lines.append(f"  {task}: {means} (%)")
        for one, other in (("Veto", "on-policy KD"), ("Veto, float32", "on-policy KD, float32"),
                           ("on-policy KD, float32", "on-policy KD")):  # fmt: skip
            points, nats = (difference(comparison, one, other, quantity) for quantity in (ACCURACY, KL))
            lines.append(
                f"    {one} minus {other}: {interval(points, 100)} points, {interval(nats)} nats of forward KL"
            )
    lines += [f"  {rule}: {'yes' if holds else 'not shown'}" for rule, holds in conclusions(found).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=list(RATES), help="learning rates")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"), help="where the studies are kept")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one per core)")
    given = parser.parse_args()
    for rate in given.rates:
        found = {task: study(task, float(rate)).run(given.out, given.workers) for task in TASKS}
        print(report(rate, found), flush=True)


if __name__ == "__main__":
    main()
