"""The completions of all methods, prompt by prompt, with the KL of each token as a colour."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veto_pl.charts.text import minus
from veto_pl.compare.results import Answer, Comparison, Trial

PROMPTS = 24
"""The most prompts that are shown."""
LEVELS = 8
_TOKENS = 12_000  # on the whole page: each takes some 100 bytes
_LONGEST = 200  # characters of one token
_END = "∎"
"""Shown for the token that ends a text: it has none of its own, and its colour could not be seen."""
_KINDS = {"f": ("forward KL", "forward_kl"), "r": ("reverse KL", "reverse_kl")}


@dataclass(frozen=True)
class Colours:
    """Equal steps of a number from 0 to `clip`; all that is larger looks like `clip`.

    Args:
        name: of the number, such as `forward KL`.
        clip: the value of the deepest colour.
        quantile: how much of all values `clip` is above; 1 where nothing is clipped.
    """

    name: str
    clip: float
    quantile: float

    @classmethod
    def of(cls, name: str, values: Sequence[float], quantile: float = 0.95) -> Colours:
        """Return the colours that show the fraction `quantile` of the finite values unclipped."""
        known = sorted(value for value in values if math.isfinite(value))
        clip = known[min(len(known) - 1, math.ceil(quantile * len(known)))] if known else 0.0
        return cls(name, clip, quantile) if clip > 0 else cls(name, max(known, default=0.0), 1.0)

    def level(self, value: float) -> int | None:
        """Return 0 to `LEVELS`, or None for NaN.

        >>> [Colours("KL", 2.0, 0.95).level(value) for value in (-0.1, 0.2, 1.0, 2.0, 9.0, float("nan"))]
        [0, 1, 4, 8, 8, None]
        """
        if math.isnan(value):
            return None
        share = min(max(value, 0.0) / self.clip, 1.0) if self.clip > 0 else float(value > 0)
        return math.floor(share * LEVELS + 0.5)


@dataclass(frozen=True)
class Token:
    """A token as it is shown: its text, how much of it is cut, the classes of its colours, and its numbers."""

    text: str
    cut: int = 0
    classes: str = ""
    tip: str = ""


class Answers:
    """The answers of one seed: the first of those that most methods finished.

    Args:
        comparison: whose answers are shown.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.trials = _one_seed(comparison)
        self.seed = next((trial.seed for trial in self.trials.values()), None)
        self.count = min(max((len(trial.answers) for trial in self.trials.values()), default=0), PROMPTS)
        self.limit = max(40, _TOKENS // max(1, self.count * len(self.trials)))
        shown = [answer for trial in self.trials.values() for answer in trial.answers[: self.count]]
        values = {kind: [v for a in shown for v in getattr(a, field)] for kind, (_, field) in _KINDS.items()}
        self.has_dialogues = any(answer.spoken for answer in shown)
        self.colours = {kind: Colours.of(_KINDS[kind][0], found) for kind, found in values.items() if found}

    def to(self, j: int) -> dict[str, Answer]:
        """Return method -> answer to prompt number `j`."""
        return {method: trial.answers[j] for method, trial in self.trials.items() if j < len(trial.answers)}

    def tokens(self, answer: Answer) -> list[Token]:
        """Return the tokens of an answer, as many as are shown."""
        values = self._values(answer)
        turns = answer.turns if len(answer.turns) == len(answer.tokens) else [0] * len(answer.tokens)
        last = [of != then for of, then in zip(turns, [*turns[1:], None], strict=False)]
        texts = [text or (_END if last[i] else "") for i, text in enumerate(self._cut(answer))]
        return [self._token(text, {kind: of[i] for kind, of in values.items()}) for i, text in enumerate(texts)]

    def of_turn(self, answer: Answer, turn: int) -> list[Token]:
        """Return those tokens of an episode's that are shown and belong to a turn."""
        return [token for token, of in zip(self.tokens(answer), answer.turns, strict=False) if of == turn]

    def listing(self, answer: Answer) -> str:
        """Return all numbers of an answer as lines of text with a header line; empty if it has none."""
        values = self._values(answer)
        names = [self.colours[kind].name for kind in values]
        numbers = zip(names, values.values(), strict=True)
        columns = [[_fixed(value).rjust(len(name)) for value in of] for name, of in numbers]
        rows = zip(*columns, (repr(text)[:_LONGEST] for text in self._cut(answer)), strict=False)
        return "\n".join(["  ".join(names), *map("  ".join, rows)]) if names else ""

    def _cut(self, answer: Answer) -> Sequence[str]:
        return answer.tokens[: self.limit]

    def _values(self, answer: Answer) -> dict[str, Sequence[float]]:
        given = {kind: getattr(answer, _KINDS[kind][1]) for kind in self.colours}
        return {kind: numbers for kind, numbers in given.items() if len(numbers) == len(answer.tokens)}

    def _token(self, text: str, values: Mapping[str, float]) -> Token:
        levels = {kind: self.colours[kind].level(value) for kind, value in values.items()}
        classes = " ".join(f"{kind}{level}" for kind, level in levels.items() if level is not None)
        tip = ", ".join(f"{self.colours[kind].name} {_fixed(value)}" for kind, value in values.items())
        return Token(text[:_LONGEST], max(0, len(text) - _LONGEST), classes, tip)


def _one_seed(comparison: Comparison) -> dict[str, Trial]:
    """Return method -> its trial of the seed that most methods have answers of."""
    known = [trial for trial in comparison.trials if trial.answers]
    seeds = Counter(trial.seed for trial in known)
    if not seeds:
        return {}
    best = max(comparison.seeds, key=lambda seed: (seeds[seed], -comparison.seeds.index(seed)))
    return {trial.method: trial for trial in known if trial.seed == best}


def _fixed(value: float) -> str:
    return minus(f"{value:.3f}" if math.isfinite(value) else f"{value:g}")
