"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from math import isfinite
from pathlib import Path

from veto_pl.compare.answers import PROMPTS, answers_html
from veto_pl.compare.cells import counted, doubts, missing_text, search_text, settings_text, skipped_text
from veto_pl.compare.charts import curves_html, diversity_html, forests_html, gradient_norms_html
from veto_pl.compare.results import Comparison, Search
from veto_pl.compare.tables import cost_html, results_html
from veto_pl.report.marks import Mark
from veto_pl.report.markup import escape
from veto_pl.report.page import page, write_text
from veto_pl.report.quantities import Quantity
from veto_pl.report.table import ResultTable, number

_LONGEST = 2000  # characters of the reason of a failure


def write_page(comparison: Comparison, path: Path) -> Path:
    """Writes the page; what is unfinished is said at its top.

    Args:
        comparison: what was found.
        path: the HTML file to write; its folder is made if need be.

    Returns:
        `path`.

    Raises:
        DataError: if a file of a run cannot be read.
    """
    sections = {
        "What was compared": _compared(comparison),
        "Results": results_html(comparison),
        "Cost": cost_html(comparison),
        "Seeds and differences": forests_html(comparison),
        "Curves": curves_html(comparison),
        "Gradient norms": gradient_norms_html(comparison),
        "Reward and diversity": diversity_html(comparison),
        "Completions": answers_html(comparison),
        "Failures": _failures(comparison),
    }
    shown = {heading: body for heading, body in sections.items() if body}
    style = files("veto_pl.report").joinpath("compare.css").read_text(encoding="utf-8") + _switches(comparison)
    return write_text(page(comparison.title, comparison.intro, shown, contents=True, style=style), path)


def _switches(comparison: Comparison) -> str:
    """The rules by which a method's checkbox hides everything of it, and a prompt's button shows that prompt."""
    methods = "".join(
        f"body:has(#method-{i}:not(:checked)) .m{i} {{ display: none; }}\n" for i in range(len(comparison.methods))
    )
    prompts = "".join(f"main:has(#prompt-{j}:checked) .prompt-{j} {{ display: block; }}\n" for j in range(PROMPTS))
    return f"{methods}@media screen {{\nmain:has(#prompt-0) .prompt {{ display: none; }}\n{prompts}}}\n"


def _compared(comparison: Comparison) -> str:
    facts = {
        "Budget of every run": comparison.budget,
        "Baseline": comparison.baseline,
        "Seeds": ", ".join(map(str, comparison.seeds)),
        "Finished runs": f"{len(comparison.trials)} of {len(comparison.methods) * len(comparison.seeds)}",
    }
    rows = "".join(f"<div><dt>{name}</dt><dd><bdi>{escape(text)}</bdi></dd></div>\n" for name, text in facts.items())
    made = _command(comparison) + _searched(comparison)
    return f"{_callouts(comparison)}<dl>\n{rows}</dl>\n{made}{_methods(comparison)}"


def _callouts(comparison: Comparison) -> str:
    said = [escape(text) for text in (missing_text(comparison), skipped_text(comparison)) if text]
    if comparison.failures:
        count = counted(len(comparison.failures), "failure")
        said.append(f'{count}: the reasons are under <a href="#failures">Failures</a>.')
    return "".join(f'<p class="callout">{text}</p>\n' for text in said)


def _command(comparison: Comparison) -> str:
    if not comparison.command:
        return ""
    text = escape(comparison.command, keep="\n")
    return f'<p class="label">Made by</p>\n<pre class="wrapped"><code>{text}</code></pre>\n'


def _methods(comparison: Comparison) -> str:
    if len(comparison.methods) < 2:
        return ""
    boxes = "".join(
        f'<label><input type="checkbox" id="method-{i}" checked> {Mark(i).inline()} <bdi>{escape(name)}</bdi></label>\n'
        for i, name in enumerate(comparison.methods)
    )
    return f'<fieldset class="choice methods">\n<legend>Methods shown on this page</legend>\n{boxes}</fieldset>\n'


def _searched(comparison: Comparison) -> str:
    return f"<h3>Settings searched</h3>\n{''.join(_searches(comparison))}" if comparison.searches else ""


def _searches(comparison: Comparison) -> Iterator[str]:
    for method, search in comparison.searches.items():
        marked = "".join(f' <strong class="edge">⚠ {what}</strong>' for what in doubts(search))
        chosen = f"<code>{escape(search.chosen)}</code>, best of {settings_text(search)} by {escape(search.metric)}"
        yield (
            f"<details><summary><bdi>{escape(method)}</bdi>: {chosen}{marked}</summary>\n"
            f"<p>{escape(search_text(search))}.</p>\n{_scores(search)}</details>\n"
        )


def _scores(search: Search) -> str:
    quantity = Quantity.of(search.metric)
    rows = {
        setting: [number(score * quantity.factor) if isfinite(score) else None, "✓" if setting == search.chosen else ""]
        for setting, score in search.scores.items()
    }
    table = ResultTable([quantity.unit, "chosen"], rows, "setting").html()
    return f'<div class="scroll" role="region" aria-label="Settings" tabindex="0">\n{table}</div>\n'


def _failures(comparison: Comparison) -> str:
    parts = []
    for name, reason in comparison.failures.items():
        cut = f"{len(reason) - _LONGEST:,} characters before this …\n" if len(reason) > _LONGEST else ""
        text = escape(cut + reason[-_LONGEST:], keep="\n\t")
        parts.append(f'<h3><bdi>{escape(name)}</bdi></h3>\n<pre class="wrapped"><code>{text}</code></pre>\n')
    return "".join(parts)
