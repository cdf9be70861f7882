"""What finished runs left behind, read and put together."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from veto_pl.callbacks.budget import PHASES
from veto_pl.compare.jobs import DONE, Job, Point, label
from veto_pl.compare.results import Comparison, Contrast, Cost, EvaluationResult, Search, Summary, Trial
from veto_pl.compare.statistics import contrasts, estimate
from veto_pl.compare.study import SettingSearch, Study
from veto_pl.exceptions import DataError
from veto_pl.report.columns import Shown
from veto_pl.report.run import Run
from veto_pl.storage.run_folder import METRICS


def read_trial(method: str, seed: int, job: Job, answers: int) -> Trial:
    """Read a finished run of the comparison, with the answers of its first evaluation.

    Raises:
        DataError: a file that the run wrote is missing or damaged.
    """
    run = Run(f"{method}, seed {seed}", job.folder)
    values: dict[str, float] = {}
    shown: dict[str, Shown] = {}
    for name in job.evaluations:
        with _reading(job, f"{name}/test.json") as path:
            found = EvaluationResult.model_validate_json(path.read_bytes())
        # JSON has no NaN: a metric without a finite value is null there.
        values |= {f"{name}/{metric}": math.nan if value is None else value for metric, value in found.metrics.items()}
        shown |= found.quantities
    first = next(iter(job.evaluations))
    with _reading(job, first) as folder:
        rows, pictures = tuple(job.kind.answers(folder, answers)), tuple(job.kind.pictures(folder))
    return Trial(method, seed, run, values, _cost(job, run), rows, shown, pictures)


def read_search(search: SettingSearch, scores: Mapping[str, float]) -> Search:
    """Rank the points of a search; a point without a finite score is never chosen.

    Raises:
        DataError: no point has one.
    """
    sign, points = 1 if search.mode == "max" else -1, {label(point): point for point in search.points}
    finite = {text: sign * score for text, score in scores.items() if math.isfinite(score)}
    if not finite:
        raise DataError(f"`search.metric` expected a number that the validation logs, got none for `{search.metric}`.")
    chosen = max(finite, key=lambda text: finite[text])
    at_edge = any(_lacks_neighbour(points[chosen], place, grid, finite) for place, grid in search.grid.items())
    return Search(search.metric, dict(scores), chosen, at_edge)


def search_score(metric: str, jobs: Iterable[Job]) -> float:
    """Return the mean over seeds of the metric's last value; NaN where a run has none.

    Raises:
        DataError: a file that a run wrote is missing or damaged.
    """
    last = [_last(job, metric) for job in jobs]
    return sum(last) / len(last)


def compare(
    study: Study,
    trials: Sequence[Trial],
    searches: Mapping[str, Search],
    failures: Mapping[str, str],
    command: str = "",
) -> Comparison:
    """Put together what is finished, with its statistics."""
    values = {(m, q): _values(trials, m, q) for m in study.methods for q in study.measured}
    estimates = {key: estimate(list(v.values()), study.confidence) for key, v in values.items() if v}
    return Comparison(
        title=study.title,
        intro=study.intro,
        budget=study.budget_text,
        baseline=study.baseline,
        methods=tuple(study.methods),
        seeds=study.seeds,
        quantities=study.shown,
        frontier=study.frontier,
        trials=tuple(trials),
        estimates=estimates,
        contrasts=_contrasts(study, values),
        searches=searches,
        failures=failures,
        confidence=study.confidence,
        command=command,
        counted=study.runs.counted,
    )


def _contrasts(study: Study, values: Mapping[tuple[str, str], dict[int, float]]) -> dict[tuple[str, str], Contrast]:
    others = [method for method in study.methods if method != study.baseline]
    found: dict[tuple[str, str], Contrast] = {}
    for quantity in study.measured:
        baseline = values[study.baseline, quantity]
        pairs = contrasts({m: values[m, quantity] for m in others}, baseline, study.confidence)
        found |= {(m, quantity): pair for m, pair in pairs.items() if not math.isnan(pair.difference.mean)}
    return found


def _values(trials: Sequence[Trial], method: str, quantity: str) -> dict[int, float]:
    return {t.seed: t.values[quantity] for t in trials if t.method == method and quantity in t.values}


def _lacks_neighbour(point: Point, place: str, grid: Sequence[float], scored: Container[str]) -> bool:
    """Say whether the next smaller or the next larger value of a setting was not tried, or has no score."""
    values = sorted(set(grid))
    at = values.index(point[place])
    beside = [label({**point, place: value}) for value in values[max(at - 1, 0) : at + 2] if value != point[place]]
    return len(values) > 1 and (len(beside) < 2 or any(text not in scored for text in beside))


def _cost(job: Job, run: Run) -> Cost:
    with _reading(job, METRICS):
        curves = run.curves()
        tokens = curves["train/tokens"]
    seconds = sum(sum(c.values) for phase in PHASES if (c := curves.get(f"train/seconds/{phase}")) is not None)
    with _reading(job, "summary.json") as path:
        skipped = Summary.model_validate_json(path.read_bytes()).skipped_steps
    turns = round(sum(curves["train/played_turns"].values)) if "train/turns" in curves else None
    return Cost(len(tokens), round(sum(tokens.values)), seconds, skipped, turns)


def _last(job: Job, metric: str) -> float:
    with _reading(job, METRICS) as path:
        path.stat()  # a run reads a missing file as an empty one
        curve = Run(job.name, job.folder).curves().get(metric)
    return curve.values[-1] if curve else math.nan


@contextmanager
def _reading(job: Job, file: str) -> Iterator[Path]:
    """Give the path of a finished run's file; errors of the block that reads it become a `DataError` about it."""
    path = job.folder / file
    try:
        yield path
    except (DataError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, DataError) else f"{path}: {type(error).__name__}: {error}."
        raise DataError(
            f"{job.name} is finished, but a file of it is missing or damaged. {reason} Remove `{job.folder / DONE}`: "
            "the same command then runs it again."
        ) from error
