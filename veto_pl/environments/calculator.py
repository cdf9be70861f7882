"""A calculator for agents."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from veto_pl.environments.tools import Tools

LARGEST = 10**18
"""Results beyond it are refused, and exponents beyond 64: a turn must not cost minutes."""

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


@dataclass(frozen=True)
class Abacus(Tools):
    """A calculator is the only tool; the task's rows ask the questions, and the task judges the last turn."""

    factory: str = field(init=False, default="veto_pl.environments.calculator.Calculator")

    @classmethod
    def examples(cls) -> tuple[Abacus, ...]:
        return (cls(),)


class Calculator:
    """Calculates; it knows numbers, `+ - * / // % **` and brackets, and nothing else of Python."""

    def calculate(self, expression: str) -> str:
        """Calculate the value of an arithmetic expression.

        Args:
            expression: The expression, such as (12*7)+9.
        """
        if len(expression) > 1000:
            raise ValueError("an expression of more than 1000 characters")
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _value(node: ast.expr) -> int | float:
    """Return the value of a node of an expression; raise `ValueError` for what is no arithmetic, or too large."""
    number = getattr(node, "value", None)  # of a literal
    match node:
        case _ if type(number) in (int, float):
            result: Any = number
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            result = _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            one, other = _value(left), _value(right)
            if isinstance(op, ast.Pow) and abs(other) > 64:
                raise ValueError("an exponent beyond 64")
            result = _BINARY[type(op)](one, other)
        case _:
            raise ValueError("only numbers, + - * / // % ** and brackets are known")
    if isinstance(result, complex) or abs(result) > LARGEST:
        raise ValueError(f"a result beyond {LARGEST}")
    return float(result) if isinstance(result, float) else int(result)
