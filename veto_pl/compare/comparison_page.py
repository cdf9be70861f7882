"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from veto_pl.compare import cells
from veto_pl.compare.answer_cards import LEVELS, Answers
from veto_pl.compare.charts import Figures
from veto_pl.compare.results import Comparison
from veto_pl.pages.render import render, write_text


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page; what is unfinished is said at its top.

    Args:
        comparison: what was found.
        path: the HTML file to write; its folder is made if need be.

    Returns:
        `path`.

    Raises:
        ConfigurationError: if matplotlib is not installed.
        DataError: if a file of a run cannot be read, or the page cannot be written.
    """
    page = render(
        "comparison.html",
        title=comparison.title,
        intro=comparison.intro,
        contents=True,
        comparison=comparison,
        columns=[comparison.quantity(name) for name in comparison.quantities],
        cells=cells,
        figures_of=Figures(comparison),
        answers=Answers(comparison),
        levels=LEVELS,
    )
    return write_text(page, path)
