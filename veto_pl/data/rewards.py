"""Verifiers: how good a completion is, against the reference of its row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from veto_pl.data.overlap import rouge
from veto_pl.seams import Example, Mistake, Reward, Setup

DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"))
"""The characters that are written for a minus."""
# A minus counts as a sign only where it cannot be a subtraction, a range or a bullet.
_NUMBER = (
    r"(?:(?<![\w)])-\$?|\$-?)?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w)])\.[0-9]+)"
)
_ANYWHERE = re.compile(_NUMBER)
_MARKED = re.compile(rf"####[ \t]*({_NUMBER})")


def final_number(text: str) -> Decimal | None:
    r"""Return the number that a worked answer ends in.

    It is the one behind the last `####` that a number follows directly, and without such a mark the last number of the
    text. Thousands separators, `$`, `%` and a full stop behind the number are ignored.

    Example:
        >>> final_number("16 - 3 = 13\n#### $1,300.50"), final_number("So it is 12."), final_number("no idea")
        (Decimal('1300.50'), Decimal('12'), None)
    """
    text = text.translate(DASHES)
    numbers = _MARKED.findall(text) or _ANYWHERE.findall(text)
    return Decimal(re.sub("[$,]", "", numbers[-1])) if numbers else None


@dataclass(frozen=True, kw_only=True)
class NoReward(Reward):
    """0 for every completion: nothing is verified.

    Example:
        >>> NoReward()(Example("2 + 2 =", "4"), "4")
        0.0
    """

    judges = False

    def __call__(self, example: Example, completion: str) -> float:
        """Return 0.0, always."""
        return 0.0

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield that somebody learns from rewards, which nobody gives."""
        if setup.rewards_for:
            yield Mistake(path, "`NoReward`", f"a verifier, for `{setup.rewards_for}` learns from rewards",
                          "Set it, for instance to `ExactMatch`; `veto-pl list rewards` shows all. `Played` needs "
                          "none, if its environment gives rewards.")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExactMatch(Reward):
    r"""1 where the completion equals the reference, else 0; 0 where the row has no reference.

    Args:
        strip: ignore white space at both ends.
        casefold: ignore case.

    Example:
        >>> ExactMatch(casefold=True)(Example("Capital of France?", "Paris"), " paris\n")
        1.0
    """

    strip: bool = True
    casefold: bool = False

    def __call__(self, example: Example, completion: str) -> float:
        """Return 1.0 or 0.0."""
        if example.completion is None:
            return 0.0
        return float(self._normal(completion) == self._normal(example.completion))

    def _normal(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.casefold else text


@dataclass(frozen=True, kw_only=True)
class LastNumber(Reward):
    r"""1 where completion and reference end in the same number, else 0; 0 where either holds no number.

    The number of a text is the one behind its last `####`, as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168), and
    without that mark its last one. Numbers are compared as decimals.

    Example:
        >>> LastNumber()(Example("How much?", "9 * 2 = 18\n#### 18"), "She makes $18.00.")
        1.0
    """

    def __call__(self, example: Example, completion: str) -> float:
        """Return 1.0 or 0.0."""
        expected = final_number(example.completion or "")
        return float(expected is not None and final_number(completion) == expected)


@dataclass(frozen=True, kw_only=True)
class RougeL(Reward):
    """The F measure of ROUGE-L (Lin 2004, ACL W04-1013) against the best reference, in [0, 1].

    It is 1, which counts as correct, only where the words are those of a reference, so accuracy is close to 0 and the
    mean reward is the number to watch. Words are runs of ASCII letters and digits, in lower case and not stemmed: of a
    text in another script nothing is counted. 0 where the row has no reference.

    Example:
        >>> RougeL()(Example("...", "The cat sat.", alternatives=("A cat sat down.",)), "the cat sat")
        1.0
    """

    def __call__(self, example: Example, completion: str) -> float:
        """Return a score in [0, 1]."""
        return rouge(completion, example.references)
