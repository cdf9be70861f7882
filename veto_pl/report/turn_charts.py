"""Quantities that are logged for each turn of an episode: one picture of all turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from veto_pl.charts.curve import Curve, drawable
from veto_pl.charts.lines import curve_chart
from veto_pl.report.columns import Quantity, Shown

_OF_TURN = re.compile(r"(?P<before>.+)/turn_(?P<turn>\d+)/(?P<name>[^/]+)")
SHARE = 10
"""The first and the last tenth of what a run has logged are compared."""


def by_turn(quantities: Iterable[Quantity]) -> dict[str, dict[int, Quantity]]:
    """Return the quantities of turns: by the name of the column without the turn, those of each turn.

    What is logged of one turn alone is left out.

    Example:
        >>> found = by_turn(Quantity.of(f"train/turn_{k}/kl") for k in (1, 2))
        >>> {name: [*turns] for name, turns in found.items()}
        {'train/kl': [1, 2]}
    """
    found: dict[str, dict[int, Quantity]] = {}
    for quantity in quantities:
        if told := _OF_TURN.fullmatch(quantity.column):
            found.setdefault(f"{told['before']}/{told['name']}", {})[int(told["turn"])] = quantity
    return {name: turns for name, turns in found.items() if len(turns) > 1}


def turn_chart(column: str, turns: Mapping[int, Quantity], curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """Draw a quantity over the turns: of one run at its beginning and at its end, of several at their ends.

    Args:
        column: its name without a turn, such as `train/kl`.
        turns: the quantity of each turn.
        curves: by run, what it has logged by column.
    """
    ends = {name: [_over_turns(turns, own, end=True)] for name, own in curves.items()}
    if len(curves) == 1:
        begins = [_over_turns(turns, own, end=False) for own in curves.values()]
        ends = {"first steps": begins, "last steps": next(iter(ends.values()))}
    first = next(iter(turns.values()))
    title = Quantity.of(column, {column.rpartition("/")[2]: Shown(title=first.words)}).title
    return curve_chart(ends, f"{title}, turn by turn", first.label, x_label="turn")


def _over_turns(turns: Mapping[int, Quantity], curves: Mapping[str, Curve], *, end: bool) -> Curve:
    """Return the means over the first or the last tenth of the logged values, as a curve over the turns.

    Behind the last turn that any episode has reached, validations log 0: that is no value.
    """
    means = {
        turn: _mean(curves.get(quantity.column, Curve()).scaled(quantity.factor).values, end=end)
        for turn, quantity in sorted(turns.items())
    }
    reached = max((turn for turn, mean in means.items() if mean), default=0)
    kept = {turn: mean for turn, mean in means.items() if mean is not None and (turn <= reached or not reached)}
    return Curve(tuple(map(float, kept)), tuple(kept.values()))


def _mean(values: Sequence[float], *, end: bool) -> float | None:
    found = [value for value in values if drawable(value)]
    some = max(len(found) // SHARE, 1)
    part = found[-some:] if end else found[:some]
    return sum(part) / len(part) if part else None
