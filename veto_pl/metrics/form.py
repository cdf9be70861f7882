"""Whether completions have the form that was asked for."""

from __future__ import annotations

import json
from typing import Literal

import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric

_KINDS: dict[str, type] = {"any": object, "list": list, "object": dict}


class ParseRate(CompletionMetric):
    """The fraction of completions that are JSON, whatever they say. Space around it is allowed, other text is not.

    Args:
        kind: what the JSON has to be; `any` allows numbers and strings too.

    References:
        arXiv 2605.08737, which reports accuracy among the completions that parse beside it
    """

    name = "parse_rate"
    unit = "%"
    higher_is_better = True

    def __init__(self, kind: Literal["any", "list", "object"] = "any") -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ConfigurationError(f"`ParseRate.kind` must be one of {', '.join(_KINDS)}, got {kind!r}.")
        self.kind = kind

    def update(self, generations: Generations) -> None:
        self._add(torch.tensor([_is_json(text, _KINDS[self.kind]) for text in generations.texts], dtype=torch.float64))


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), kind)
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    """Raise ValueError for NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(constant)
