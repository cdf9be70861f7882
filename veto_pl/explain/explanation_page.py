"""The pictures of an explanation, and the page that they stand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from veto_pl.charts import Curve, curve_chart
from veto_pl.charts.text import number
from veto_pl.explain.response import Response
from veto_pl.explain.scene import Scene
from veto_pl.pages.render import render, write_text
from veto_pl.report.table import ResultTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("loss (nats)", "gradient", "relative pull")
_PROBABILITIES = {
    1e-6: "1e-6", 1e-4: "1e-4", 0.01: "0.01", 0.1: "0.1", 0.5: "0.5", 0.9: "0.9", 0.99: "0.99",
    1 - 1e-6: "1\N{MINUS SIGN}1e-6",
}  # fmt: skip
_ROUNDING = 1e-9  # what is left of a difference that is 0


def write_explanation(
    responses: Mapping[str, Response], scene: Scene, path: Path, *, described: Mapping[str, str], part: float = 0.0
) -> Path:
    """Write the page of an explanation.

    Args:
        responses: objective -> what it does, in the order of their colours.
        scene: what they were drawn on.
        path: the HTML file.
        described: objective -> its settings, as text.
        part: of the run that was done.

    Returns:
        `path`.
    """
    pictures = charts(responses, scene)
    page = render(
        "explanation.html",
        title="What the objective does",
        intro="",
        scene=scene,
        part=part,
        kept={name: response.kept for name, response in responses.items() if response.kept is not None},
        shared=[svg for name, svg in pictures.items() if not name.startswith("target")],
        targets=[svg for name, svg in pictures.items() if name.startswith("target")],
        tables={name: ResultTable(COLUMNS, dict(number_rows(of, scene)), "student") for name, of in responses.items()},
        described=described,
    )
    return write_text(page, path)


def charts(responses: Mapping[str, Response], scene: Scene) -> dict[str, str]:
    """Return every picture by a short name, as an `<svg>` element."""
    draw = partial(_draw_curves, teacher=scene.teacher)
    gradient = "∂ loss / ∂ logit of the teacher's choice"
    shared = {
        "loss": draw({name: (r.student, r.loss) for name, r in responses.items()}, "Loss", "expected loss (nats)"),
        "gradient": draw({name: (r.student, r.gradient) for name, r in responses.items()}, "Gradient", gradient),
        "pull": draw(
            {name: (r.student, r.pull()) for name, r in responses.items()},
            "Relative pull", "minus gradient / probability", log=True,
        ),
    }  # fmt: skip
    targets = _targets(responses).items()
    label = "target's probability of the teacher's choice"
    return shared | {f"target-{i}": draw(of, title, label, share=True) for i, (title, of) in enumerate(targets)}


def _targets(responses: Mapping[str, Response]) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Return curves by title: constant targets share one title, each target that changes over the run has its own."""
    fixed = {n: (r.student, v) for n, r in responses.items() for v in r.targets.values() if len(r.targets) == 1}
    moving = {
        f"Target of {name}": {part: (response.student, values) for part, values in response.targets.items()}
        for name, response in responses.items()
        if len(response.targets) > 1
    }
    return ({"Target": fixed} if fixed else {}) | moving


def _draw_curves(
    series: Mapping[str, tuple[Tensor, Tensor]],
    title: str,
    label: str,
    *,
    teacher: float,
    log: bool = False,
    share: bool = False,
) -> str:
    """Draw curves over the student's probability, with a vertical line at that of the teacher. Return the `<svg>`."""

    def adjust(axes: Axes) -> None:
        from veto_pl.charts.svg import INK, SOFT

        low, high = axes.get_xlim()
        axes.set_xscale("logit")
        ticks = {at: text for at, text in _PROBABILITIES.items() if low * (1 - 1e-9) <= at <= high * (1 + 1e-9)}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xticks([], minor=True)
        axes.set_xlim(low, high)
        if share:
            axes.set_ylim(0, 1)
        axes.axvline(teacher, color=INK, alpha=0.4, linewidth=1, clip_on=False)
        axes.text(teacher, 1.01, "teacher", ha="center", color=SOFT, transform=axes.get_xaxis_transform())

    curves = {name: [Curve(*map(tuple, _points(*of, log=log)))] for name, of in series.items()}
    return curve_chart(
        curves, title, label, x_label="student's probability of the teacher's choice", log=log, points=1000, height=220,
        adjust=adjust,
    )  # fmt: skip


def _points(student: Tensor, values: Tensor, *, log: bool) -> tuple[list[float], list[float]]:
    """Return x and y of a curve; on a log axis, values that differ from 0 only by rounding become 0."""
    return student.tolist(), [value if value > _ROUNDING or not log else 0.0 for value in values.tolist()]


def number_rows(response: Response, scene: Scene) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the rows of a table: the student's probability as text, and the text of each of `COLUMNS`."""
    swept = response.student.tolist()
    for probability in scene.noted:
        at = swept.index(probability)
        values = [float(column[at]) for column in (response.loss, response.gradient, response.pull())]
        # Without what rounding leaves of 0, and without its sign.
        yield f"{probability:g}".replace("e-0", "e-"), tuple(number(round(value, 12) + 0.0) for value in values)
