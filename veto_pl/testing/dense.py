"""Oracles of the memory-exact loss head: every logit at once under autograd, and a count of its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from veto_pl.models.readout import token_logp
from veto_pl.objectives.scoring import Scoring
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.seams import Models, Rollouts, Step
from veto_pl.seams.tokens import TokenRows


def dense_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    *,
    target: Callable[[Tensor, Tensor], Tensor] | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """What `functional.chunked.linear_divergence` computes, from [N, V] logits, with a graph.

    Args:
        student_logits: [N, V], any dtype; float64 makes this an oracle.
        teacher_logits: [N, V].
        divergence: maps two [N, V] log-probabilities to [N].
        target: maps (teacher_logp, student_logp) to [N, V]; held fixed.
        weights: [N].

    Returns:
        The weighted sum, a scalar.
    """
    student, teacher = torch.log_softmax(student_logits, -1), torch.log_softmax(teacher_logits, -1).detach()
    goal = teacher if target is None else target(teacher, student.detach()).detach()
    values = divergence(student, goal)
    return (values if weights is None else values * weights).sum()


def dense_loss(objective: TokenObjective, rollouts: Rollouts, models: Models, step: Step) -> Tensor:
    """The undivided loss of a token objective, with all N x V log-probabilities in one autograd graph.

    Args:
        objective: any token objective with a live teacher, or none.
        rollouts: as `Objective.loss` gets them.
        models: the models; no chunk, no closed form and no cache is used on them.
        step: where training stands.

    Returns:
        A scalar whose backward pass reaches the student's parameters.
    """
    sequences = objective.select(rollouts[objective.rollout], step)
    reference = None
    if objective.needs_reference:
        reference = token_logp(models.required_reference(), sequences, temperature=objective.temperature)
    scoring = Scoring(objective, sequences, step, reference)

    def logp(hidden: Tensor, model: object) -> Tensor:
        return torch.log_softmax(model.project(hidden)[0] / objective.temperature, -1)  # type: ignore[attr-defined]

    student: Tensor = models.student(sequences, logp)
    teacher = None
    if objective.needs_teacher:
        with torch.no_grad():
            teacher = models.required_teacher()(objective.context(sequences, models, step), logp)
    rows = TokenRows(student, teacher, scoring.token_ids, scoring.sequence_rows, step)
    if objective.looks_ahead:
        logps = {"student_logp": rows.token_logp().detach(), "teacher_logp": rows.teacher_token_logp()}
        scoring.look_ahead(logps)
        rows = replace(rows, ahead=scoring.ahead)
    scores = {
        "loss": objective.per_token(rows),
        "student_logp": rows.token_logp(),
        "teacher_logp": rows.teacher_token_logp(),
        **{f"score/{name}": value.detach() for name, value in objective.scores(rows).items()},
    }
    return scoring.reduce(scores).terms["loss"].total


class VocabularyProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiplications of matrix products that have the vocabulary as one of their three sizes.

    Args:
        vocab_size: V; no other size of the computation may equal it.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocab_size = vocab_size
        self.multiplications = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket._qualified_op_name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = args[-2:]
            sizes = (*left.shape, right.shape[1])
            if self.vocab_size in sizes:
                self.multiplications += sizes[0] * sizes[1] * sizes[2]
        return function(*args, **(kwargs or {}))
