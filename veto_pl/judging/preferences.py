"""What a judge says of a pair of answers, and how both orders are asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.seams import Example, Judge

NO_REFERENCE = "no reference to compare with"
"""Why a judge that reads the reference decides nothing about a row that has none."""


class NoVerdictError(VetoError):
    """A judge that was asked has not decided; the message is the reason, short enough to be counted by."""


@dataclass(frozen=True)
class Pair:
    """Two answers to a row.

    Args:
        example: the row, with its references.
        first: an answer.
        second: another answer.
    """

    example: Example
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """What a judge makes of a pair.

    Args:
        score: 1.0 where the first answer is better, 0.0 where the second is, 0.5 for a tie, None for no verdict.
        disagreed: whether the verdict depended on the order of the answers; it is then a tie.
        shown_first: of each decisive reply, whether the answer that was shown first won.
        reason: why there is no verdict, or an empty string.
    """

    score: float | None
    disagreed: bool = False
    shown_first: tuple[bool, ...] = ()
    reason: str = ""


def ask(judge: Judge, pair: Pair, *, both_orders: bool = True, seed: int = 0) -> Verdict:
    """Return the verdict on a pair. Equal answers tie without being judged.

    Args:
        judge: decides.
        pair: the answers.
        both_orders: ask a second time with the answers exchanged; a verdict that changes is a tie.
        seed: decides, with the texts, which answer is shown first where one order is asked.

    Raises:
        ConfigurationError: the judge returns another number.
    """
    if pair.first == pair.second:
        return Verdict(0.5)
    orders = (False, True) if both_orders else (_exchanged(pair, seed),)
    try:
        shown = [_reply(judge, pair, exchanged) for exchanged in orders]
    except NoVerdictError as error:
        return Verdict(None, reason=str(error))
    scores = [1 - score if exchanged else score for score, exchanged in zip(shown, orders, strict=True)]
    decisive = tuple(score == 1.0 for score in shown if score != 0.5)
    disagreed = len(set(scores)) > 1
    return Verdict(0.5 if disagreed else scores[0], disagreed, decisive)


def ask_all(judge: Judge, pairs: Iterable[Pair], *, both_orders: bool = True, seed: int = 0) -> list[Verdict]:
    """Return the verdict on every pair; a judge with a `concurrency` above 1 is asked from so many threads."""
    with ThreadPoolExecutor(max(1, getattr(judge, "concurrency", 1))) as pool:
        return list(pool.map(lambda pair: ask(judge, pair, both_orders=both_orders, seed=seed), pairs))


def _reply(judge: Judge, pair: Pair, exchanged: bool) -> float:
    first, second = (pair.second, pair.first) if exchanged else (pair.first, pair.second)
    score = float(judge(pair.example, first, second))
    if score not in (0.0, 0.5, 1.0):
        raise ConfigurationError(f"{type(judge).__name__} expected to return 1.0, 0.5 or 0.0, returned {score}.")
    return score


def _exchanged(pair: Pair, seed: int) -> bool:
    text = "\0".join((str(seed), pair.example.prompt, pair.first, pair.second))
    return bool(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[0] % 2)
