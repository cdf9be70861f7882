"""The explanation as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from veto_pl.explain.chart import Point, curves
from veto_pl.explain.response import Response
from veto_pl.explain.scene import Scene
from veto_pl.report.markup import escape
from veto_pl.report.page import page, write_text
from veto_pl.report.table import ResultTable, number


def write_explanation(
    responses: Mapping[str, Response], scene: Scene, path: Path, *, described: Mapping[str, str], part: float = 0.0
) -> Path:
    """Writes the page.

    Args:
        responses: objective -> what it does, in the order of their colours.
        scene: what they were drawn on.
        path: the HTML file.
        described: objective -> its settings, as text.
        part: of the run that was done.

    Returns:
        `path`.
    """
    targets = list(_targets(responses, scene))
    sections = {"Loss and gradient": _notes(responses, scene) + _grid(_shared(responses, scene))}
    if targets:
        sections["Target"] = _grid(targets)
    sections["Numbers"] = "".join(_numbers(name, response, scene) for name, response in responses.items())
    sections["Objectives"] = "".join(
        f'<details><summary>{escape(name)}</summary>\n<pre tabindex="0"><code>{escape(text)}</code></pre></details>\n'
        for name, text in described.items()
    )
    return write_text(page("What the objective does", introduction(scene, part), sections), path)


def introduction(scene: Scene, part: float) -> str:
    """What the pictures show."""
    return (
        f"One token, {scene.outcomes} possible ids. The teacher gives its choice {scene.teacher:g} and shares the rest "
        "evenly among the others. The student gives the teacher's choice the probability on the horizontal axis, from "
        f"far too little on the left to far too much on the right. Schedules stand at {part:.0%} of the run.\n\n"
        "All values come from the objective's own code, expected over the token that its rollout would draw. A "
        "negative gradient raises the student's logit of the teacher's choice. Returns over the future and comparisons "
        "of completions have nothing to see in one token."
    )


def _notes(responses: Mapping[str, Response], scene: Scene) -> str:
    return "".join(
        f'<p class="note">{escape(name)} keeps the {response.kept:,} likeliest ids. Here there are {scene.outcomes}, '
        "and all are compared.</p>\n"
        for name, response in responses.items()
        if response.kept is not None
    )


def charts(responses: Mapping[str, Response], scene: Scene) -> dict[str, str]:
    """Every picture by a short name, as SVG."""
    shared = dict(zip(("loss", "gradient", "pull"), _shared(responses, scene), strict=True))
    return shared | {f"target-{i}": chart for i, chart in enumerate(_targets(responses, scene))}


def _shared(responses: Mapping[str, Response], scene: Scene) -> list[str]:
    def drawn(values: Mapping[str, Tensor], title: str, label: str, logarithmic: bool = False) -> str:
        series = {name: _points(responses[name].student, value) for name, value in values.items()}
        return curves(series, title, label, teacher=scene.teacher, logarithmic=logarithmic)

    return [
        drawn({name: r.loss for name, r in responses.items()}, "Loss", "expected loss (nats)"),
        drawn(
            {name: r.gradient for name, r in responses.items()}, "Gradient", "∂ loss / ∂ logit of the teacher's choice"
        ),
        drawn({name: r.pull() for name, r in responses.items()}, "Relative pull", "minus gradient / probability", True),
    ]


def _targets(responses: Mapping[str, Response], scene: Scene) -> Iterator[str]:
    """One chart of the targets that stay as they are, and one for each that moves over the run."""
    label = "target's probability of the teacher's choice"
    fixed = {
        name: _points(response.student, values)
        for name, response in responses.items()
        for values in response.targets.values()
        if len(response.targets) == 1
    }
    if fixed:
        yield curves(fixed, "Target", label, teacher=scene.teacher, share=True)
    for name, response in responses.items():
        if len(response.targets) > 1:
            series = {part: _points(response.student, values) for part, values in response.targets.items()}
            yield curves(series, f"Target of {name}", label, teacher=scene.teacher, share=True)


def _points(student: Tensor, values: Tensor) -> list[Point]:
    return list(zip(student.tolist(), values.tolist(), strict=True))


def _grid(svgs: list[str]) -> str:
    return '<div class="charts">\n' + "".join(f"<figure>{svg}</figure>\n" for svg in svgs) + "</div>\n"


def _numbers(name: str, response: Response, scene: Scene) -> str:
    table = ResultTable(COLUMNS, dict(number_rows(response, scene)), label="student")
    return (
        f"<h3>{escape(name)}</h3>\n"
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">\n{table.html()}</div>\n'
    )


COLUMNS = ("loss (nats)", "gradient", "relative pull")


def number_rows(response: Response, scene: Scene) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The points of the sweep that are noted: the student's probability, and the columns."""
    swept = response.student.tolist()
    for probability in scene.noted:
        values = [
            float(column[swept.index(probability)]) for column in (response.loss, response.gradient, response.pull())
        ]
        # Without what rounding leaves of 0, and without its sign.
        yield f"{probability:g}".replace("e-0", "e-"), tuple(number(round(value, 12) + 0.0) for value in values)
