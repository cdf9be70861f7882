"""A model's text, token by token, on a background that deepens with a number per token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from veto_pl.report.markup import escape, minus, tab_stop, visible
from veto_pl.report.table import number

LEVELS = 8
_LONGEST = 200  # characters of one token


@dataclass(frozen=True)
class Scale:
    """Equal steps from 0 to `clip`; all that is larger looks like `clip`.

    Args:
        name: of the number, such as `forward KL`.
        letter: the class of level `i` is this letter and `i`.
        clip: the value of the deepest colour.
        quantile: how much of all values `clip` is above; 1 where nothing is clipped.
    """

    name: str
    letter: str
    clip: float
    quantile: float

    @classmethod
    def of(cls, name: str, letter: str, values: Sequence[float], quantile: float = 0.95) -> Scale:
        """The scale that shows the fraction `quantile` of the finite values unclipped."""
        known = sorted(value for value in values if math.isfinite(value))
        clip = known[min(len(known) - 1, math.ceil(quantile * len(known)))] if known else 0.0
        return cls(name, letter, clip, quantile) if clip > 0 else cls(name, letter, max(known, default=0.0), 1.0)

    def level(self, value: float) -> int | None:
        """0 to `LEVELS`, or None for NaN.

        >>> [Scale("KL", "f", 2.0, 0.95).level(value) for value in (-0.1, 0.2, 1.0, 2.0, 9.0, float("nan"))]
        [0, 1, 4, 8, 8, None]
        """
        if math.isnan(value):
            return None
        share = min(max(value, 0.0) / self.clip, 1.0) if self.clip > 0 else float(value > 0)
        return math.floor(share * LEVELS + 0.5)

    def legend(self) -> str:
        """The colours with the values at the ends, and what is clipped."""
        steps = "".join(f'<span class="{self.letter}{level}"></span>' for level in range(LEVELS + 1))
        where = f"and more (clipped at the {self.quantile:.0%} quantile)" if self.quantile < 1 else "(the largest)"
        return (
            f'<p class="scale scale-{self.letter}"><span>{escape(self.name)}: 0</span> '
            f'<span class="ramp" aria-hidden="true">{steps}</span> <span>{number(self.clip)} nats {where}</span></p>\n'
        )


def tokens_html(tokens: Sequence[str], values: Mapping[Scale, Sequence[float]], *, limit: int) -> str:
    """The text with one element per token, followed by all numbers as a list to unfold.

    Args:
        tokens: texts of the tokens.
        values: scale -> one number per token, or none at all.
        limit: number of tokens to show; how many more there are is said.
    """
    given = {scale: numbers for scale, numbers in values.items() if len(numbers) == len(tokens)}
    shown = range(min(limit, len(tokens)))
    spans = "".join(_token(tokens[i], {scale: numbers[i] for scale, numbers in given.items()}) for i in shown)
    more = f'<p class="note">… and {len(tokens) - limit:,} more tokens.</p>\n' if len(tokens) > limit else ""
    stop = tab_stop("".join(tokens[:limit]))
    return f'<div class="text" dir="auto"{stop}>{spans}</div>\n{more}{_list(tokens[:limit], given) if given else ""}'


def _token(text: str, values: Mapping[Scale, float]) -> str:
    body = _shown(text)
    if not values:
        return body
    levels = {scale: scale.level(value) for scale, value in values.items()}
    classes = " ".join(f"{scale.letter}{level}" for scale, level in levels.items() if level is not None)
    tip = ", ".join(f"{scale.name} {_fixed(value)}" for scale, value in values.items())
    return f'<span class="{classes}" title="{escape(tip)}">{body}</span>'


def _shown(text: str) -> str:
    """HTML in which every token can be seen: a line feed gets a sign, and a long token is cut."""
    cut = f'<span class="control">… {len(text) - _LONGEST:,} more characters</span>' if len(text) > _LONGEST else ""
    return visible(text[:_LONGEST]).replace("\n", '<span class="feed">↵</span>\n') + cut


def _list(tokens: Sequence[str], values: Mapping[Scale, Sequence[float]]) -> str:
    head = "  ".join(scale.name for scale in values)
    columns = [[_fixed(value).rjust(len(scale.name)) for value in numbers] for scale, numbers in values.items()]
    rows = zip(*columns, map(repr, tokens), strict=False)
    lines = "\n".join(chain([head], ("  ".join(row[:-1]) + "  " + escape(row[-1][:_LONGEST]) for row in rows)))
    return f"<details><summary>KL of each token</summary>\n<pre{tab_stop(lines)}>{lines}</pre></details>\n"


def _fixed(value: float) -> str:
    return minus(f"{value:.3f}" if math.isfinite(value) else f"{value:g}")
