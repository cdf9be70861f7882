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
_POWERS = re.compile(r"\^ ?(?:\{ ?(-?[0-9]{1,2}) ?\}|([0-9])(?![0-9]))")
_LONG_POWER = re.compile(r"\^ ?([0-9]{2,9})(?![0-9])")
# math-verify reads `3 4` as 7, `2(3)` as 5 and `1/2x` as 1/(2x).
_AMBIGUOUS = re.compile(r"[0-9)}][ ]+\.?[0-9]|/[ ]?[0-9.]{1,20}[ ]?[A-Za-z(\\]")
_PRODUCT = re.compile(r"(?<=[0-9)}])[ ]?\(")
_OPERATORS = re.compile(r"[-+*/÷^,=]|\\frac|\\sqrt")
_MOST_OPERATORS, _MOST_ROOTS, _MOST_VARIABLES, _DEEPEST = 12, 2, 2, 4
_MOST_OF_EQUATION = 4
"""Variables of an equation, which is compared at points only."""
_LARGEST_POWER, _LARGEST_OF_NUMBERS = 6, 64
_NEAR, _SAME = 1e-5, 1e-9


def harmless(text: str, variables: int = _MOST_VARIABLES) -> bool:
    r"""Whether an expression of so many variables is short and simple enough to be evaluated in bounded time.

    Example:
        >>> harmless(r"\frac{1+\sqrt{5}}{2}"), harmless("9^{9^{9}}"), harmless("100000!"), harmless("(x+1)^{99}")
        (True, False, False, False)
    """
    if not text or len(text) > LONGEST or not _PARTS.fullmatch(text) or not re.search(r"[0-9a-zA-Z]", text):
        return False
    if _AMBIGUOUS.search(text):
        return False
    rational = not re.search(r"[A-Za-z]", text.replace("\\frac", ""))
    powers = [abs(int(braced or single)) for braced, single in _POWERS.findall(text)]
    return (
        len(powers) == text.count("^")
        and math.prod(max(power, 1) for power in powers) <= (_LARGEST_OF_NUMBERS if rational else _LARGEST_POWER)
        and text.count("sqrt") <= _MOST_ROOTS
        and len(_variables(text)) <= variables
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


def same_equation(expected: str, given: str) -> bool:
    r"""Whether two equations are the same up to a factor; False where one is none, or not `harmless`.

    Both are evaluated at a few points and nothing is simplified.

    Example:
        >>> same_equation("3x-y+13=0", "3x - y = -13"), same_equation("3x-y+13=0", "3x+4y+14=0")
        (True, False)
    """
    left, right = _plain(expected), _plain(given)
    fit = all(harmless(text, _MOST_OF_EQUATION) and text.count("=") == 1 for text in (left, right))
    return fit and _variables(left) == _variables(right) != frozenset() and _proportional(left, right)


@lru_cache(maxsize=4096)
def _proportional(expected: str, given: str) -> bool:
    """Whether the differences of the sides have the same quotient at each of some arbitrary points."""
    try:
        one, other = (_difference(text) for text in (expected, given))
        symbols = sorted(one.free_symbols | other.free_symbols, key=str)
        quotients = [_value(one, symbols, shift) / _value(other, symbols, shift) for shift in range(5)]
        return abs(quotients[0]) > 0 and all(abs(q - quotients[0]) <= _SAME * abs(quotients[0]) for q in quotients)
    except Exception:  # whatever the parser or the arithmetic says to a text, they have not accepted it
        return False


def _difference(equation: str) -> Any:
    left, right = (_parsed(side) for side in equation.split("="))
    return left[0] - right[0]


def _value(expression: Any, symbols: list[Any], shift: int) -> complex:
    from sympy import Rational

    point = {symbol: Rational(7 + 4 * place + 3 * shift * shift, 5 + shift) for place, symbol in enumerate(symbols)}
    return complex(expression.subs(point).evalf(20))


def _parsed(text: str) -> Any:
    from math_verify import LatexExtractionConfig, parse

    _quieten()
    text = _PRODUCT.sub("*(", text)
    return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def _variables(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"(?<![a-zA-Z\\])[a-zA-Z]", text))


@lru_cache(maxsize=4096)
def _verified(expected: str, given: str) -> bool:
    from math_verify import verify

    try:
        gold, answer = _parsed(expected), _parsed(given)
        if not gold or not answer or _differ(gold[0], answer[0]):
            return False
        return bool(verify(gold, answer, timeout_seconds=None))
    except Exception:  # whatever the parser says to a text, it has not accepted it
        return False


def _differ(left: Any, right: Any) -> bool:
    """Whether two expressions differ at an arbitrary point; False where that says nothing."""
    from sympy import Expr

    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    one, other = (_value(side, symbols, 0) for side in (left, right))
    return abs(one - other) > _NEAR * max(1.0, abs(one))


@lru_cache(maxsize=1)
def _quieten() -> None:
    """math-verify warns that it sets no timeout; nothing that needs one gets there."""
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).addFilter(lambda record: "Timeout is disabled" not in record.getMessage())


def _plain(text: str) -> str:
    """One way to write powers and products."""
    text = text.strip(" $.").replace("**", "^").replace("\\cdot", "*").strip()
    return _LONG_POWER.sub(r"^{\1}", text)


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
        if depth < 0:
            return LONGEST
    return deepest if depth == 0 else LONGEST
