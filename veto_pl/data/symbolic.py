r"""Equality of short mathematical expressions, by math-verify and sympy, without their dangers.

sympy evaluates what it reads: `9^{9^{9}}` fills the memory, and simplifying a product of powers takes minutes.
math-verify guards against this with SIGALRM, which works in the main thread only. Here nothing is interrupted: an
expression reaches sympy only if it is short and made of known parts, and if its numbers, powers, roots and variables
are few and small. What differs in value at a point is not simplified either.
"""

from __future__ import annotations

import logging
import math
import re
from functools import lru_cache
from typing import Any

LONGEST = 80
"""Characters of an expression."""
_PARTS = re.compile(
    r"(?:\\frac|\\sqrt|\\pi|[0-9]{1,9}(?![0-9])(?:\.[0-9]{1,9}(?![0-9]))?|(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])"
    r"|[-+*/÷^(){},=. ])*"
)
_POWERS = re.compile(r"\^ ?(?:\{ ?(-?[0-9]) ?\}|([0-9])(?![0-9]))")
# math-verify reads `3 4` as 7, `2(3)` as 5 and `1/2x` as 1/(2x).
_AMBIGUOUS = re.compile(r"[0-9)}][ ]+\.?[0-9]|/[ ]?[0-9.]{1,20}[ ]?[A-Za-z(\\]")
_PRODUCT = re.compile(r"(?<=[0-9)}])[ ]?\(")
_OPERATORS = re.compile(r"[-+*/÷^,=]|\\frac|\\sqrt")
_MOST_OPERATORS, _MOST_ROOTS, _MOST_VARIABLES, _DEEPEST, _LARGEST_POWER = 12, 2, 2, 4, 6
_NEAR = 1e-5


def harmless(text: str) -> bool:
    r"""Whether an expression is short and simple enough to be evaluated in bounded time.

    Example:
        >>> harmless(r"\frac{1+\sqrt{5}}{2}"), harmless("9^{9^{9}}"), harmless("100000!"), harmless("(x+1)^{99}")
        (True, False, False, False)
    """
    if not text or len(text) > LONGEST or not _PARTS.fullmatch(text) or not re.search(r"[0-9a-zA-Z]", text):
        return False
    if _AMBIGUOUS.search(text):
        return False
    powers = [abs(int(braced or single)) for braced, single in _POWERS.findall(text)]
    return (
        len(powers) == text.count("^")
        and math.prod(max(power, 1) for power in powers) <= _LARGEST_POWER
        and text.count("sqrt") <= _MOST_ROOTS
        and len(_variables(text)) <= _MOST_VARIABLES
        and len(_OPERATORS.findall(text)) <= _MOST_OPERATORS
        and _depth(text) <= _DEEPEST
    )


def same_expression(expected: str, given: str) -> bool:
    r"""Whether two expressions are equal as mathematics; False where one is not `harmless` or has other variables.

    Floats are compared to 6 decimals, which is math-verify's own setting.

    Example:
        >>> same_expression(r"2\sqrt{3}", r"\sqrt{12}"), same_expression("x+1", "x+2")
        (True, False)
    """
    left, right = _plain(expected), _plain(given)
    return harmless(left) and harmless(right) and _variables(left) == _variables(right) and _verified(left, right)


def _variables(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"(?<![a-zA-Z\\])[a-zA-Z]", text))


@lru_cache(maxsize=4096)
def _verified(expected: str, given: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    _quieten()
    try:
        gold, answer = (
            parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
            for text in (_PRODUCT.sub("*(", expected), _PRODUCT.sub("*(", given))
        )
        if not gold or not answer or _differ(gold[0], answer[0]):
            return False
        return bool(verify(gold, answer, timeout_seconds=None))
    except Exception:  # whatever the parser says to a text, it has not accepted it
        return False


def _differ(left: Any, right: Any) -> bool:
    """Whether two expressions differ at an arbitrary point; False where that says nothing."""
    from sympy import Expr, Rational

    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {symbol: Rational(7 + 4 * place, 5) for place, symbol in enumerate(symbols)}
    one, other = (complex(side.subs(point).evalf(20)) for side in (left, right))
    return abs(one - other) > _NEAR * max(1.0, abs(one))


@lru_cache(maxsize=1)
def _quieten() -> None:
    """math-verify warns that it sets no timeout; nothing that needs one gets there."""
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).addFilter(lambda record: "Timeout is disabled" not in record.getMessage())


def _plain(text: str) -> str:
    """One way to write powers and products."""
    return text.strip(" $.").replace("**", "^").replace("\\cdot", "*").strip()


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
        if depth < 0:
            return LONGEST
    return deepest if depth == 0 else LONGEST
