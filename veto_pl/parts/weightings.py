"""How much each token counts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.core.bounds import Finite
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.differentiation import belongs
from veto_pl.seams import TokenWeighting
from veto_pl.seams.tokens import TokenRows


@dataclass(frozen=True)
class Uniform(TokenWeighting):
    """Every token counts 1."""

    def __call__(self, rows: TokenRows) -> Tensor:
        return torch.ones_like(rows.token_ids, dtype=rows.student_logp.dtype)

    @property
    def is_neutral(self) -> bool:
        """Whether the call is still that of this class."""
        return belongs(self, "is_neutral", "__call__")


@dataclass(frozen=True)
class TeacherEntropyAbove(TokenWeighting):
    """Only tokens where the teacher is undecided count.

    Args:
        threshold: entropy of the teacher in nats.

    References:
        arXiv 2603.07079
    """

    threshold: Finite = 0.8

    def __call__(self, rows: TokenRows) -> Tensor:
        return (entropy(rows.required_teacher_logp()) > self.threshold).to(rows.student_logp.dtype)
