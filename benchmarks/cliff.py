"""The extrapolation cliff: lambda swept across the predicted bound (arXiv 2605.08737), on lists in JSON.

    python benchmarks/cliff.py --write docs/extrapolation.md

The prediction is measured before training by `ExtrapolationMonitor`: at brackets, commas and spaces, the teacher's
modal probability and the mass that the student's start gives the same token. The rule of the verdict was written before
the runs: lambda counts as beyond the cliff where the parse rate of samples falls below that at lambda 1 by a paired 95%
interval over seeds that excludes 0. The prediction holds if these are the lambdas above the bound and no others.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from veto_pl.charts import Row, forest_plot, standalone
from veto_pl.commands.compare import run_study
from veto_pl.compare.results import Comparison, Estimate
from veto_pl.compare.statistics import contrast

STUDY = Path("configs/compare/cliff.yaml")
ROWS = {"train": 40_000, "validation": 400, "test": 400}
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
PARSED = "sampled/parse_rate"
PICTURES = {PARSED: "samples that are JSON (%)", "sampled/accuracy": "samples that are right (%)"}


def write_rows(folder: Path) -> None:
    """Three to five digits and their sorted list; no prompt is in two files."""
    generator = random.Random(0)
    seen: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in ROWS.items():
        lines = list(_rows(generator, count, seen))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(generator: random.Random, count: int, seen: set[str]) -> Iterator[str]:
    while count:
        numbers = [generator.randrange(10) for _ in range(generator.randint(3, 5))]
        prompt = " ".join(map(str, numbers))
        if prompt not in seen:
            seen.add(prompt)
            count -= 1
            yield json.dumps({"prompt": prompt, "completion": json.dumps(sorted(numbers))})


def bounds(comparison: Comparison) -> list[float]:
    """The predicted bound of each run: that of the binding token."""
    files = [trial.run.folder / "extrapolation.json" for trial in comparison.trials]
    return [json.loads(file.read_text(encoding="utf-8"))[0]["bound"] for file in files]


def report(comparison: Comparison) -> str:
    """The table of the sweep, and the verdict."""
    predicted = bounds(comparison)
    star, beyond = mean(predicted), []
    lines = ["| lambda | samples that are JSON (%) | against lambda 1 | samples that are right (%) | entropy (nats) |",
             "| ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for method in comparison.methods:
        change = _change(comparison, method)
        if change is not None and change.high < 0:
            beyond.append(_lambda(method))
        shown = (
            "" if change is None else f"{100 * change.mean:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
        )
        parsed, right, entropy = (
            comparison.estimates[method, name].mean for name in (PARSED, "sampled/accuracy", "sampled/student_entropy")
        )
        lines.append(f"| {_lambda(method):g} | {100 * parsed:.1f} | {shown} | {100 * right:.1f} | {entropy:.3f} |")
    expected = [_lambda(m) for m in comparison.methods if _lambda(m) > star]
    verdict = "holds here" if beyond == expected else "does not hold here"
    return "\n".join([
        *lines, "",
        f"Predicted bound: {star:.3f} (mean over {len(predicted)} runs, {min(predicted):.3f} to {max(predicted):.3f}). "
        f"Beyond the cliff by the rule: {', '.join(f'{value:g}' for value in beyond) or 'none'}; predicted: "
        f"{', '.join(f'{value:g}' for value in expected) or 'none'}. The prediction **{verdict}**.",
    ])  # fmt: skip


def _change(comparison: Comparison, method: str) -> Estimate | None:
    if method == comparison.baseline:
        return None
    own, base = ({t.seed: t.values[PARSED] for t in comparison.of(m)} for m in (method, comparison.baseline))
    return contrast(own, base, comparison.confidence).difference


def _lambda(method: str) -> float:
    return float(method.split()[-1])


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """A picture for each quantity: seeds, means and intervals, lambda by lambda."""
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    for quantity, label in PICTURES.items():
        rows = []
        for method in comparison.methods:
            of = comparison.estimates[method, quantity]
            seeds = {trial.seed: 100 * trial.values[quantity] for trial in comparison.of(method)}
            low, high = 100 * of.low, 100 * of.high
            rows.append(Row(method, seeds, 100 * of.mean, low, high, f"{100 * of.mean:.1f}"))
        files.append(folder / f"cliff-{quantity.replace('/', '-').replace('_', '-')}.svg")
        files[-1].write_text(standalone(forest_plot(rows, comparison.title, label, width=560.0)), encoding="utf-8")
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the rows, runs what is missing of the study, and prints the result or writes it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/cliff/study"), help="where the study is kept")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one per core)")
    parser.add_argument("--write", type=Path, help="the page whose results are replaced, docs/extrapolation.md")
    given = parser.parse_args(arguments)
    write_rows(Path("runs/cliff/data"))
    comparison = run_study(STUDY, given.out, workers=given.workers)
    text = report(comparison)
    print(text)
    if given.write is not None:
        pictures = write_plots(comparison, given.write.parent / "images")
        text += "".join(f"\n\n![{file.stem}](images/{file.name})" for file in pictures)
        before, _, rest = given.write.read_text(encoding="utf-8").partition(BEGIN)
        given.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
