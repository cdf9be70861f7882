"""Bases of the metrics. States are sums, so the value is the same on any number of ranks."""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from veto_pl.core.part import Part
from veto_pl.metrics.generations import Generations


class _Mean(Part, Metric, ABC):
    """A weighted mean; 0 before the first update.

    Charts and tables show it as its class says: `title` in place of its name, with `unit`, in which `%` is for a share
    that is shown times 100, and as `higher_is_better` says, which is None where neither is better.

    With a `source` it measures the rows of that data set of a mixture alone.
    """

    full_state_update = False
    name: str
    title: str = ""
    unit: str = ""
    source: str = ""
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return total divided by weight; 0 before the first update."""
        return (self.total / self.weight.clamp_min(torch.finfo(torch.float64).tiny)).float()

    def _add(self, values: Tensor, weights: Tensor | None = None) -> None:
        # Not in place: a validation before the fit leaves tensors of inference mode behind.
        weighed = values.double() if weights is None else values.double() * weights
        self.total = self.total + weighed.sum()
        self.weight = self.weight + (values.numel() if weights is None else weights.double().sum())

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def quiet() -> Any:
            with warnings.catch_warnings():
                # Nothing to average is no mistake: the value is 0.
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                return wrapped()

        return quiet


class CompletionMetric(_Mean):
    """A mean over completions or over groups of completions; `name` is the key that it is logged under.

    With `needs_logp` the completions come with their log-probability under the student. With `needs_group` a value says
    nothing where a prompt has one completion.
    """

    needs_logp = False
    needs_group = False

    @abstractmethod
    def update(self, generations: Generations) -> None:
        """Add the completions of one batch."""


class TokenMetric(_Mean):
    """A mean over completion tokens; `name` is the key that it is logged under.

    With `needs_ids`, `per_token` has a third parameter `token_ids`: [N] int64, the ids that the student has written.
    With a `turn` it measures the tokens of that turn alone, of the student's in episodes. With a `teacher` it compares
    with that one of several alone, over the tokens that it reads.
    """

    needs_teacher = True
    needs_ids = False
    turn: int = 0
    teacher: str = ""

    def update(
        self,
        student_logp: Tensor,
        teacher_logp: Tensor | None,
        *token_ids: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        """Add tokens: [N, V] log-probabilities of the student, and of the teacher where there is one.

        `token_ids` is [N] of what was written, and there if the metric `needs_ids`. `weights` is [N], the teacher's
        share of each token; None where it alone reads it.
        """
        self._add(self.per_token(student_logp, teacher_logp, *token_ids), weights)

    @abstractmethod
    def per_token(self, student_logp: Tensor, teacher_logp: Tensor | None) -> Tensor:
        """Return [N] values, one per token."""


class MetricFamily(ABC):
    """Several metrics that are configured as one, because what they are depends on the evaluation."""

    @abstractmethod
    def members(self, num_completions: int) -> list[CompletionMetric | TokenMetric]:
        """Return the metrics for so many completions per prompt; each is logged under its own name."""


def require_teacher(teacher_logp: Tensor | None) -> Tensor:
    """Return the teacher's log-probabilities, for metrics that are only used where there is a teacher."""
    assert teacher_logp is not None, "metrics with `needs_teacher` are left out where there is no teacher"
    return teacher_logp
