r"""What student and teacher are compared on where their tokens are not the same: shared ids, and the unit itself.

At the first position of a unit u the outcomes are the ids that stand for the same bytes in both vocabularies, and the
unit, where it is none of these. Its score is the mean of those of its tokens. Shapes as in `veto_pl.functional.units`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from veto_pl.functional.heads import Head, ScaleAndCap
from veto_pl.functional.units import Units, unit_sums

MOST_IDS = 2**31
"""More than any vocabulary has, so that a pair of ids is one number."""
Score = Literal["logp", "logit"]
"""What is averaged over the tokens of a unit: log-probabilities, or raw logits, as in the published code."""


def unit_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_ids: Tensor,
    teacher_ids: Tensor,
    units: Units,
    divergence: Callable[[Tensor, Tensor], Tensor],
    score: Score = "logp",
) -> Tensor:
    r"""Compute the divergence of a student from a teacher with another tokenizer, unit by unit.

    .. math:: D\big(\mathrm{softmax}(s_S), \mathrm{softmax}(s_T)\big)_u, \qquad
        s_M = \Big( \log p_M(v) \Big)_{v \in V_S \cap V_T} \cup \frac{1}{k_M} \sum_{j \in u} \log p_M(v_j)

    with the log-probabilities of the shared ids at the unit's first position, and of the unit's tokens at their own.

    Args:
        student_logits: [N, Vs] at the positions that predict the student's tokens.
        teacher_logits: [Nt, Vt] at the positions that predict the teacher's; no gradient reaches them.
        student_ids: [N] int64, the student's tokens.
        teacher_ids: [Nt] int64, the teacher's.
        units: which of them stand for the same bytes, and the ids that are shared.
        divergence: maps (student_logp, target_logp), [U, K + 1] each, to [U].
        score: `logit` takes raw logits in the place of log-probabilities. Its value then depends on a constant added to
            all logits of one position, which log-probabilities do not know.

    Returns:
        [U] nats. Divide their sum by the number of the student's tokens.

    Numerics: log-space throughout. A unit that is a shared id has no second outcome, so that identical vocabularies
    give the divergence over all ids.

    Example:
        >>> from veto_pl.functional.divergences import reverse_kl
        >>> ids = torch.arange(2)
        >>> units = Units(torch.tensor([0]), torch.tensor([0]), 1, (ids, ids))
        >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> unit_divergence(student, teacher, torch.tensor([1]), torch.tensor([1]), units, reverse_kl)
        tensor([0.1438])

    References:
        SimCT, arXiv 2605.07711, equations 6 to 9.
    """
    listed = listed_units(student_ids, teacher_ids, units)
    sides = zip(
        (student_logits, teacher_logits.detach()), (student_ids, teacher_ids), (units.student, units.teacher),
        units.first, units.sizes, units.shared, strict=True,
    )  # fmt: skip
    student, teacher = (
        unit_outcomes(*_scores(logits, ids, of, first, size, shared, score), listed)
        for logits, ids, of, first, size, shared in sides
    )
    return divergence(student, teacher)


def unit_outcomes(shared: Tensor, own: Tensor, listed: Tensor) -> Tensor:
    """Normalise the scores of the shared ids and of the unit itself.

    Args:
        shared: [U, K], -inf for what is no outcome.
        own: [U], the unit's own score.
        listed: [U] bool, True where the unit is one of the shared ids already.

    Returns:
        [U, K + 1] log-probabilities, that of the unit last, -inf where it is listed.

    Example:
        >>> unit_outcomes(torch.zeros(2, 1), torch.zeros(2), torch.tensor([True, False])).exp()
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return torch.log_softmax(torch.cat([shared, own.masked_fill(listed, -math.inf)[:, None]], -1), -1)


def listed_units(student_ids: Tensor, teacher_ids: Tensor, units: Units) -> Tensor:
    """Mark the units that are one token on both sides, and these two a pair of shared ids, [U] bool.

    Args:
        student_ids: [N] int64.
        teacher_ids: [Nt] int64.
        units: of these tokens.

    Example:
        >>> pair = torch.tensor([5]), torch.tensor([7])
        >>> units = Units(torch.tensor([0, 1]), torch.tensor([0, 1]), 2, pair)
        >>> listed_units(torch.tensor([5, 5]), torch.tensor([7, 8]), units)
        tensor([ True, False])
    """
    mine, theirs = (ids[first] for ids, first in zip((student_ids, teacher_ids), units.first, strict=True))
    pairs, shared = (one * MOST_IDS + other for one, other in ((mine, theirs), units.shared))
    return units.single & torch.isin(pairs, shared)


class SharedHead(Head):
    """A head read in the ids of another vocabulary: the logits of its own ids that both share, -inf for the others.

    It is a teacher's: it has no backward pass.

    Args:
        head: the other head.
        units: whose shared ids these are.
        vocab_size: ids of the student.

    Example:
        >>> from veto_pl.functional.heads import LinearHead
        >>> pair = torch.tensor([2]), torch.tensor([0])
        >>> units = Units(torch.tensor([0]), torch.tensor([0]), 1, pair)
        >>> SharedHead(LinearHead(torch.eye(2)), units, 3).forward(torch.tensor([[5.0, 6.0]]))
        tensor([[-inf, -inf, 5.]])
    """

    def __init__(self, head: Head, units: Units, vocab_size: int) -> None:
        self.head, self.units, self.vocab_size = head, units, vocab_size
        self.scale_and_cap = ScaleAndCap()

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Nothing that has a gradient."""
        return ()

    def cast(self, dtype: torch.dtype) -> SharedHead:
        """Return the same numbers as `dtype`."""
        return SharedHead(self.head.cast(dtype), self.units, self.vocab_size)

    def forward(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Map [n, D] to [n, V] logits, in float32 at least, scaled and capped as the other head does it."""
        mine, theirs = self.units.shared
        logits = self.head.scale_and_cap(self.head.forward(hidden)[:, theirs])
        if out is None:
            out = logits.new_empty(len(hidden), self.vocab_size)
        return out.fill_(-math.inf).index_copy_(1, mine, logits)

    def logits_dtype(self, hidden: Tensor) -> torch.dtype:
        """Return float32 at least."""
        return torch.promote_types(self.head.logits_dtype(hidden), torch.float32)

    def backward(self, *args: object, **kwargs: object) -> Tensor | None:
        """Refuse: a teacher's head is not trained."""
        raise NotImplementedError("A `SharedHead` is a teacher's, which has no backward pass.")


def _scores(
    logits: Tensor, ids: Tensor, of: Tensor, first: Tensor, size: Tensor, shared: Tensor, score: Score
) -> tuple[Tensor, Tensor]:
    """Return the scores of the shared ids at each unit's first position, [U, K], and of the unit, [U]."""
    scores = torch.log_softmax(logits, -1) if score == "logp" else logits
    own = scores.gather(1, ids[:, None])[:, 0]
    return scores[first][:, shared], unit_sums(own, of, len(first)) / size
