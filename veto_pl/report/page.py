"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.report.completions import completions_html
from veto_pl.report.curve import Curve
from veto_pl.report.markup import escape
from veto_pl.report.quantities import Quantity, in_order
from veto_pl.report.run import Run
from veto_pl.report.svg import line_chart
from veto_pl.report.table import Cell, ResultTable, number
from veto_pl.storage.run_folder import CONFIG, METRICS, SAMPLES

_RESULTS = ("accuracy", "forward_kl", "reverse_kl", "student_entropy", "completion_length", "eos_rate")
_SECONDS = Quantity.of("train/seconds")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{intro}{contents}</header>
<main>
{sections}</main>
</body>
</html>
"""


def write_report(
    runs: Sequence[Run], path: Path, *, title: str, table: ResultTable | None = None, intro: str = ""
) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        runs: in the order of their colours.
        path: the HTML file to write; its folder is made if need be.
        title: headline.
        table: results to show; by default the first and the last validation of each run.
        intro: plain text under the headline; an empty line starts a paragraph.

    Returns:
        `path`.

    Raises:
        ConfigurationError: if there is no run, or two have one name.
        DataError: if a file of a run cannot be read.
    """
    _check_names([run.name for run in runs])
    sections = {
        "Results": _results(runs, table),
        "Curves": _charts(runs),
        "Completions": _absent(runs, SAMPLES) + completions_html(runs),
        "Configuration": _absent(runs, CONFIG) + "".join(_config(run) for run in runs if run.config),
    }
    return write_text(page(title, intro, sections), path)


def page(title: str, intro: str, sections: Mapping[str, str], *, contents: bool = False, style: str = "") -> str:
    """The frame of every report: one HTML file without scripts, for light and dark, screen and paper.

    Args:
        title: headline, plain text.
        intro: plain text under the headline; an empty line starts a paragraph.
        sections: heading, plain text -> HTML.
        contents: whether links to the sections stand under the introduction.
        style: CSS on top of that of all reports.

    Returns:
        The text of the file.
    """
    shared = files("veto_pl.report").joinpath("style.css").read_text(encoding="utf-8")
    paragraphs = "".join(f"<p>{escape(text)}</p>\n" for text in _paragraphs(intro))
    links = "".join(f'<li><a href="#{anchor(heading)}">{escape(heading)}</a></li>\n' for heading in sections)
    return _PAGE.format(
        title=escape(title),
        style=shared + style,
        intro=paragraphs,
        contents=f'<nav aria-label="Contents">\n<ul>\n{links}</ul>\n</nav>\n' if contents else "",
        sections="".join(_section(heading, body) for heading, body in sections.items()),
    )


def anchor(heading: str) -> str:
    """The id of the section with that heading.

    >>> anchor("What was compared")
    'what-was-compared'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in heading.lower()).split())


def write_text(text: str, path: Path | str) -> Path:
    """Writes UTF-8 with line feeds, making the folder if need be, and returns the path.

    Raises:
        DataError: if it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"`{path}` could not be written: {error.strerror}. Name another file.") from error
    return path


def first_and_last(runs: Iterable[Run]) -> ResultTable:
    """The default table: first and last value of each validated quantity that any run has, and training seconds."""
    curves = {run.name: run.curves() for run in runs}
    wanted = [Quantity.of(f"validation/{name}") for name in _RESULTS]
    wanted = [q for q in [*wanted, _SECONDS] if any(columns.get(q.column) for columns in curves.values())]
    rows = {name: [_ends(columns.get(q.column), q) for q in wanted] for name, columns in curves.items()}
    return ResultTable([quantity.unit for quantity in wanted], rows)


def _ends(curve: Curve | None, quantity: Quantity) -> Cell:
    if not curve:
        return None
    values = curve.scaled(quantity.factor).values
    if len(values) == 1 or quantity == _SECONDS:
        return number(values[-1])
    return f"{number(values[0])} → {number(values[-1])}"


def _results(runs: Sequence[Run], table: ResultTable | None) -> str:
    note = ""
    if table is None:
        table = first_and_last(runs)
        note = '<p class="note">First → last value of each run.</p>\n' if table.columns else ""
    if not table.columns:
        return '<p class="note">No validation results were logged.</p>\n'
    return f'<div class="scroll" role="region" aria-label="Results" tabindex="0">\n{table.html()}</div>\n{note}'


def _charts(runs: Sequence[Run]) -> str:
    curves = {run.name: run.curves() for run in runs}
    charts = []
    for quantity in in_order(column for columns in curves.values() for column in columns):
        series = {name: columns.get(quantity.column, Curve()) for name, columns in curves.items()}
        scaled = {name: curve.scaled(quantity.factor) for name, curve in series.items()}
        charts.append(f"<figure>{line_chart(scaled, quantity.title, quantity.unit)}</figure>\n")
    grid = f'<div class="charts">\n{"".join(charts)}</div>\n' if charts else ""
    return _absent(runs, METRICS) + grid


def _config(run: Run) -> str:
    text = escape(run.config, keep="\n\t")
    body = f'<pre tabindex="0"><code>{text}</code></pre>'
    return f"<details><summary>{escape(run.name)}</summary>\n{body}</details>\n"


def _absent(runs: Sequence[Run], file: str) -> str:
    names = ", ".join(escape(run.name) for run in runs if run.missing(file))
    return f'<p class="note">No <code>{file}</code> in: {names}.</p>\n' if names else ""


def _section(heading: str, body: str) -> str:
    return f'<section id="{anchor(heading)}">\n<h2>{escape(heading)}</h2>\n{body}</section>\n'


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigurationError("`write_report` needs at least one run, got none.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"Runs of a report must differ in name, got {twice} twice; pass `name` to `Run.read`.")
