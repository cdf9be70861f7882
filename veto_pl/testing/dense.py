"""Oracles of the memory-exact loss head: every logit at once under autograd, and a count of its products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.seams import LanguageModel, Models, Rollouts, Sequences, Step, TeacherContext
from veto_pl.seams.tokens import TokenGrid, TokenRows


def dense_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    *,
    target: Callable[[Tensor, Tensor], Tensor] | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return what `functional.chunked.linear_divergence` computes, from whole [N, V] logits under autograd.

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
    """Compute the undivided loss of a token objective from every logit at once, in one autograd graph.

    It shares no code with the path that it checks but the objective itself: transformers reads each row alone and
    without padding, and loops find the tokens that count and add up their losses.

    Args:
        objective: any token objective with a live teacher, or none.
        rollouts: as `Objective.loss` gets them, with at least one token that counts.
        models: student, and teacher and reference as far as they are needed, both of them in evaluation mode.
        step: where training stands.

    Returns:
        A scalar whose backward pass reaches the student's parameters.
    """
    sequences = objective.select(rollouts[objective.rollout], step)
    places = _places(sequences)
    student = _logp(models.student, sequences, objective.temperature)
    with torch.no_grad():
        teacher = reference = None
        if objective.needs_teacher:
            teacher_rows = objective.context(sequences, models, step)
            teacher = _logp(models.required_teacher(), teacher_rows, objective.temperature)
        if objective.needs_reference:
            reference = _logp(models.required_reference(), sequences, objective.temperature)
        contrasts = [_contrast(objective, context, sequences, models, step) for context in objective.contrasts]
    ids = torch.stack([sequences.input_ids[place] for place in places])
    rows = TokenRows(student, teacher, ids, torch.tensor([row for row, _ in places]), step)
    grid = replace(_grid(rows, reference, sequences), contrast_logp=torch.stack(contrasts) if contrasts else None)
    if objective.looks_ahead:
        numbers = objective.look_ahead(replace(grid, student_logp=grid.student_logp.detach()))
        ahead = {
            name: torch.stack([value[row, column - 1] for row, column in places]) for name, value in numbers.items()
        }
        rows = replace(rows, ahead=ahead)
    scores = {name: _spread(value.detach(), sequences) for name, value in objective.scores(rows).items()}
    losses = objective.over_sequences(_spread(objective.per_token(rows), sequences), replace(grid, scores=scores))
    total = student.new_zeros(())
    groups = [_group(objective.aggregation, sequences, place) for place in places]
    for (row, column), group in zip(places, groups, strict=True):
        share = 1.0 if objective.aggregation == "token" else 1 / groups.count(group)
        total = total + share * losses[row, column - 1]
    return total


def _contrast(
    objective: TokenObjective, context: TeacherContext, sequences: Sequences, models: Models, step: Step
) -> Tensor:
    """Return the tokens' log-probabilities [B, S] under the teacher in a context; -inf on rows that are not told."""
    logp = _logp(models.required_teacher(), context(sequences, models, step), objective.temperature)
    own, told = objective.context.informed(sequences).tolist(), context.informed(sequences).tolist()
    found = [
        line[sequences.input_ids[row, column]] if own[row] and told[row] else line.new_tensor(-math.inf)
        for line, (row, column) in zip(logp, _places(sequences), strict=True)
    ]
    return _spread(torch.stack(found), sequences)


def _group(aggregation: str, sequences: Sequences, place: tuple[int, int]) -> tuple[int, int]:
    """Return what the token at a place is averaged with: an episode, or a row, and perhaps a turn."""
    row, column = place
    episodes, turns = sequences.episodes, sequences.turn_ids
    whole = row if episodes is None or aggregation == "sequence" else int(episodes[row])
    return whole, int(turns[row, column]) if turns is not None and aggregation == "turn" else 0


def _places(sequences: Sequences) -> list[tuple[int, int]]:
    """Return the row and the column of every token that counts, row by row; the first column is never predicted."""
    lines = enumerate(sequences.loss_mask.tolist())
    return [(row, column) for row, line in lines for column, counts in enumerate(line) if column and counts]


def _logp(model: LanguageModel, sequences: Sequences, temperature: float) -> Tensor:
    """Return the [N, V] log-probabilities of what may stand at the places of the tokens that count."""
    found = []
    for ids, there, counts in zip(sequences.input_ids, sequences.attention_mask, sequences.loss_mask, strict=True):
        logits = model.model(ids[there][None], use_cache=False).logits[0, :, : model.vocab_size].float()
        found += [logits[place - 1] for place, counted in enumerate(counts[there].tolist()) if place and counted]
    return torch.log_softmax(torch.stack(found) / temperature, -1)


def _spread(values: Tensor, sequences: Sequences) -> Tensor:
    """Put [N] values to the positions [B, S] that predict their tokens; 0 stands elsewhere."""
    rows, width = sequences.input_ids.shape
    grid = [[values.new_zeros(()) for _ in range(width - 1)] for _ in range(rows)]
    for (row, column), value in zip(_places(sequences), values, strict=True):
        grid[row][column - 1] = value
    return torch.stack([torch.stack(line) for line in grid])


def _grid(rows: TokenRows, reference: Tensor | None, sequences: Sequences) -> TokenGrid:
    """Return the grid that an objective reads: each token's log-probability under each model, for the batch."""
    ids = rows.token_ids.tolist()

    def of_tokens(logp: Tensor) -> Tensor:
        return _spread(torch.stack([line[token] for line, token in zip(logp, ids, strict=True)]), sequences)

    sampled = sequences.sampler_logp
    return TokenGrid(
        student_logp=of_tokens(rows.student_logp),
        teacher_logp=of_tokens(torch.zeros_like(rows.student_logp) if rows.teacher_logp is None else rows.teacher_logp),
        sampler_logp=None if sampled is None else sampled[:, 1:],
        mask=_spread(torch.ones(len(ids)), sequences) == 1,
        prompt_rows=sequences.prompt_rows,
        rewards=sequences.rewards,
        step=rows.step,
        reference_logp=None if reference is None else of_tokens(reference),
        age=sequences.age,
        turn_ids=None if sequences.turn_ids is None else sequences.turn_ids[:, 1:],
        episodes=sequences.episodes,
    )


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
