"""The report of training runs: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from veto_pl.charts.curve import Curve
from veto_pl.charts.lines import curve_chart
from veto_pl.charts.text import number
from veto_pl.exceptions import ConfigurationError
from veto_pl.pages.render import render, write_text
from veto_pl.report.columns import Quantity, Shown, in_order
from veto_pl.report.pictures import Picture
from veto_pl.report.run import Run, Sample
from veto_pl.report.table import Cell, ResultTable
from veto_pl.report.turn_charts import by_turn, turn_chart
from veto_pl.seams import Line

PROMPTS = 24
"""The most prompts that are shown."""
GRIDS = 7
"""The most pictures of a run that are shown."""
_SECONDS = "train/seconds"
_TEST = "test"
"""The group of what `veto-pl test` has logged: a number of one student, and no curve."""


def write_report(
    runs: Sequence[Run], path: Path, *, title: str, table: ResultTable | None = None, intro: str = ""
) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        runs: in the order of their colours.
        path: the HTML file to write; its folder is made if need be.
        title: headline.
        table: results to show; by default the first and the last validation of each run.
        intro: plain text under the headline; an empty line starts a paragraph.

    Returns:
        `path`.

    Raises:
        ConfigurationError: if there is no run, or two have one name, or matplotlib is not installed.
        DataError: if a file of a run cannot be read, or the page cannot be written.
    """
    _check_names([run.name for run in runs])
    page = render(
        "report.html",
        title=title,
        intro=intro,
        runs=runs,
        table=first_and_last(runs) if table is None else table,
        note=table is None,
        **_charts(runs),
        cards=_cards(runs),
        limit=PROMPTS,
        drawn={run.name: _some(run.pictures) for run in runs if run.pictures},
    )
    return write_text(page, path)


def first_and_last(runs: Sequence[Run]) -> ResultTable:
    """Return the first and last value of each validated quantity that any run has, the tests, and the seconds."""
    curves = {run.name: run.curves() for run in runs}
    logged = [q for q in _quantities(runs) if any(columns.get(q.column) for columns in curves.values())]
    wanted = [q for q in logged if q.group == "validation"] + [q for q in logged if q.group == _TEST]
    wanted += [q for q in logged if q.column == _SECONDS]
    rows = {name: [_ends(columns.get(q.column), q) for q in wanted] for name, columns in curves.items()}
    return ResultTable([q.heading if q.group == _TEST else q.label for q in wanted], rows)


def _quantities(runs: Iterable[Run]) -> list[Quantity]:
    shown: dict[str, Shown] = {name: of for run in runs for name, of in run.shown.items()}
    return in_order((column for run in runs for column in run.curves()), shown)


def _ends(curve: Curve | None, quantity: Quantity) -> Cell:
    if not curve:
        return None
    values = curve.scaled(quantity.factor).values
    if len(values) == 1 or quantity.column == _SECONDS or quantity.group == _TEST:
        return number(values[-1])
    return f"{number(values[0])} → {number(values[-1])}"


def _charts(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the pictures, of what changed (validations first), of times, and of what did not change; no empty one.

    What is logged turn by turn is one picture over the turns, behind those of what changed.
    """
    curves = {run.name: run.curves() for run in runs}
    charts: dict[str, list[str]] = {"charts": [], "times": [], "constants": []}
    quantities = [quantity for quantity in _quantities(runs) if quantity.group != _TEST]
    turns = by_turn(quantities)
    together = {one for of in turns.values() for one in of.values()}
    logged = [quantity for quantity in quantities if quantity not in together]
    for quantity in sorted(logged, key=lambda quantity: quantity.group != "validation"):
        series = {name: [columns.get(quantity.column, Curve())] for name, columns in curves.items()}
        scaled = {name: [curve.scaled(quantity.factor) for curve in own] for name, own in series.items()}
        drawn = [curve for own in scaled.values() for curve in own if not curve.is_empty]
        constant = all(curve.is_constant for curve in drawn)
        kind = "times" if quantity.is_time else "constants" if constant else "charts"
        if drawn:
            charts[kind].append(curve_chart(scaled, quantity.title, quantity.label))
    charts["charts"] += [turn_chart(column, of, curves) for column, of in turns.items()]
    return charts


Card = tuple[str, tuple[str, ...], tuple[Line, ...], list[str], dict[str, list[Sample]]]


def _cards(runs: Sequence[Run]) -> list[Card]:
    """Return prompt, its images, what else is said first, references, and the completions of each run's last step.

    What more runs have answered stands first. Episodes of one prompt that begin otherwise are told apart, and so are
    prompts with other images.
    """
    answers: dict[tuple[str, tuple[str, ...], str], dict[str, list[Sample]]] = {}
    for run in runs:
        for sample in run.last_samples:
            key = (sample.prompt, sample.thumbnails, repr(sample.opening))
            answers.setdefault(key, {}).setdefault(run.name, []).append(sample)
    cards = []
    for (prompt, images, _), of in sorted(answers.items(), key=lambda item: -len(item[1])):
        references = dict.fromkeys(s.reference for own in of.values() for s in own if s.reference is not None)
        opening = next(iter(of.values()))[0].opening
        cards.append((prompt, images, opening, list(references), {run.name: of.get(run.name, []) for run in runs}))
    return cards


def _some(pictures: Sequence[Picture]) -> list[Picture]:
    """Return at most `GRIDS` pictures: the first, which shows the targets, and steps at even distances to the last."""
    wanted = min(len(pictures), GRIDS)
    places = [0, *(round(1 + i * (len(pictures) - 2) / max(wanted - 2, 1)) for i in range(wanted - 1))]
    return [pictures[place] for place in places]


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigurationError("`write_report` needs at least one run, got none.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(
            f"The runs of a report must differ in name, got {', '.join(f'`{name}`' for name in twice)} more than once. "
            "Name each folder once, or give them names: `--names` of `veto-pl report`, `name` of `Run.read`."
        )
