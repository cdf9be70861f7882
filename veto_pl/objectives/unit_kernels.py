"""What a loss over units computes of a few rows of logits; everything of a vocabulary's size happens here.

The kernels hold no tensors: what belongs to the rows is in `block.given`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.functional.blocks import Block
from veto_pl.functional.diagnostics import comparison, entropy
from veto_pl.functional.differentiation import closed_form
from veto_pl.functional.unit_outcomes import Score, unit_outcomes
from veto_pl.seams import Divergence


@dataclass(frozen=True)
class ScoreKernel:
    """Scores the tokens of one model, whichever it is. A block is given `token_ids`, [n].

    Args:
        temperature: divides the logits.
        score: what is averaged over a unit.
    """

    temperature: float
    score: Score

    @property
    def kind(self) -> Hashable:
        """What the compiler tells apart."""
        return type(self), self.score

    def __call__(self, block: Block) -> tuple[dict[str, Tensor], None]:
        """Return `logp` of the token, its `score`, the `normaliser` of the scores, and the `entropy`, [n] each."""
        logits = block.student / self.temperature
        normaliser = logits.logsumexp(-1)
        token = logits.gather(1, block.given["token_ids"][:, None])[:, 0]
        logp = token - normaliser
        found = {"logp": logp, "entropy": entropy(logits - normaliser[:, None])}
        if self.score == "logp":
            return {**found, "score": logp, "normaliser": normaliser}, None
        return {**found, "score": token, "normaliser": torch.zeros_like(normaliser)}, None


@dataclass(frozen=True)
class UnitKernel:
    """Compares student and teacher at the first positions of units, with the gradient in the student's logits there.

    A block has the teacher's logits in the student's ids (`SharedHead`). It is given, [n] each: `token_ids`, of the
    student's first token; `student_score` and `teacher_score` of the unit; the `student_normaliser` and
    `teacher_normaliser` of the scores there; `listed`, whether the unit is a shared id; `size`, the student's tokens of
    the unit; and `by_loss`, the derivative of the batch's loss in the unit's.

    Args:
        divergence: of student and teacher.
        temperature: divides the logits.
        score: what is averaged over a unit.
        shared: the student's likeliest shared ids that are outcomes; None for all.
    """

    divergence: Divergence
    temperature: float
    score: Score
    shared: int | None

    @property
    def name(self) -> str:
        """What a warning calls it."""
        return f"{type(self.divergence).__name__} over units"

    @property
    def kind(self) -> Hashable:
        """What the compiler tells apart."""
        return type(self), type(self.divergence), self.score, self.shared

    def __call__(self, block: Block) -> tuple[dict[str, Tensor], Tensor]:
        """Return `loss`, `credit`, `shared_mass` and `metric/...`, [n] each, and the gradient [n, V].

        `credit` is the derivative of the batch's loss in the log-probability of each of the student's tokens of the
        unit, or in its logit. That of the first token is in the gradient already.
        """
        given, (student, teacher, ids) = block.given, self._shared_scores(block)
        assert block.teacher is not None, "this stream has a teacher"
        outcomes = unit_outcomes(student, given["student_score"], given["listed"])
        goal = unit_outcomes(teacher, given["teacher_score"], given["listed"])
        losses, gradient = closed_form(self.divergence)(outcomes, goal)
        weight = given["by_loss"]
        gradient = gradient * weight[:, None]
        of_shared, of_unit = gradient[:, :-1], gradient[:, -1]
        if ids is not None:
            of_shared = torch.zeros_like(block.student).scatter(1, ids, of_shared)
        credit = of_unit / given["size"]
        whole = token_gradient(block, credit, of_shared, self.temperature, self.score, through=of_unit)
        probability = torch.softmax(block.student / self.temperature, -1)
        mass = torch.where(block.teacher > -math.inf, probability, 0.0).sum(-1)
        compared = {f"metric/{name}": value for name, value in comparison(outcomes, goal).items() if name != "entropy"}
        return {"loss": losses, "credit": credit, "shared_mass": mass, **compared}, whole

    def _shared_scores(self, block: Block) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the scores of student and teacher on the shared ids, [n, K], and these if they are chosen."""
        assert block.teacher is not None, "this stream has a teacher"
        given = block.given
        teacher = block.teacher / self.temperature - given["teacher_normaliser"][:, None]
        student = block.student / self.temperature - given["student_normaliser"][:, None]
        student = torch.where(teacher > -math.inf, student, -math.inf)
        if self.shared is None:
            return student, teacher, None
        ids = student.topk(min(self.shared, student.shape[1]), -1).indices
        return student.gather(1, ids), teacher.gather(1, ids), ids


@dataclass(frozen=True)
class CreditKernel:
    """Forms the gradient of what later tokens of units are credited with. A block is given `token_ids` and `credit`."""

    temperature: float
    score: Score

    @property
    def kind(self) -> Hashable:
        """What the compiler tells apart."""
        return type(self), self.score

    def __call__(self, block: Block) -> tuple[dict[str, Tensor], Tensor]:
        """Return nothing new, and the gradient [n, V]."""
        credit = block.given["credit"]
        nothing = torch.zeros_like(block.student)
        return {"credit": credit}, token_gradient(block, credit, nothing, self.temperature, self.score)


def token_gradient(
    block: Block, credit: Tensor, direct: Tensor, temperature: float, score: Score, through: Tensor | None = None
) -> Tensor:
    r"""Return the gradient in the student's logits, [n, V].

    .. math:: \frac{1}{\tau} \left[ g_v + p_v\, a + c\, (1[v = y] - p_v) \right]

    with raw logits as scores without both terms in p.

    Args:
        block: a few rows.
        credit: [n], c, the derivative in the score of the token.
        direct: [n, V], g, the derivatives in the scores of the ids.
        temperature: tau.
        score: what the scores are.
        through: [n], a, minus the sum of g, by which the normaliser changes; 0 by default.
    """
    gradient = direct.scatter_add(1, block.given["token_ids"][:, None], credit[:, None])
    if score == "logp":
        normalised = -credit if through is None else through - credit
        probability = torch.softmax(block.student / temperature, -1)
        gradient = gradient.addcmul_(probability, normalised[:, None])
    return gradient if temperature == 1 else gradient.div_(temperature)
