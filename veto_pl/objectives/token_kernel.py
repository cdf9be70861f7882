"""What a token objective computes of a few rows of logits: losses, metrics, and the gradient in the logits.

Everything vocabulary-sized happens here; only [n] scalars and the block's gradient leave it. The kernels hold no
tensors, so that the compiler fuses them once for all batches: what belongs to the rows is in `block.given`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from veto_pl.core.nested import walk
from veto_pl.functional.chunked import Block
from veto_pl.functional.compiled_numbers import Number
from veto_pl.functional.differentiation import belongs
from veto_pl.functional.reduction import Aggregation
from veto_pl.seams import RolloutSource, Step
from veto_pl.seams.tokens import TokenGrid, TokenRows


class TokenLoss(Protocol):
    """What scoring asks of an objective; `TokenObjective` says what each of them means."""

    @property
    def needs_teacher(self) -> bool:
        """Return whether a teacher is read."""
        ...

    @property
    def rollout(self) -> RolloutSource:
        """Return who writes the completions."""
        ...

    @property
    def temperature(self) -> float:
        """Return what divides the logits."""
        ...

    @property
    def aggregation(self) -> Aggregation:
        """Return what weighs alike."""
        ...

    @property
    def engine_cap(self) -> float | None:
        """Return the truncation of the weights trainer / engine."""
        ...

    @property
    def weighs_samples(self) -> bool:
        """Return whether the objective has importance weights of its own."""
        ...

    @property
    def couples_tokens(self) -> bool:
        """Return whether the gradients of tokens wait until all are scored."""
        ...

    @property
    def sampled_tokens_only(self) -> bool:
        """Return whether `per_token` is constantly 0."""
        ...

    @property
    def looks_ahead(self) -> bool:
        """Return whether tokens are read once before their losses are."""
        ...

    def per_token(self, rows: TokenRows) -> Tensor:
        """Return [n] losses."""
        ...

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Return [n] losses and their [n, V] gradients in the logits."""
        ...

    def by_autograd(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Return the same by autograd."""
        ...

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        """Return [n] numbers for the grid, by name."""
        ...

    def look_ahead(self, grid: TokenGrid) -> Mapping[str, Tensor]:
        """Return [B, S] numbers for the rows, by name."""
        ...

    def over_sequences(self, losses: Tensor, grid: TokenGrid) -> Tensor:
        """Return [B, S] losses of the whole micro-batch."""
        ...

    def token_metrics(self, rows: TokenRows) -> dict[str, Tensor]:
        """Return [n] values to log, by name."""
        ...

    def with_tensors(self, number: Number, step: Step) -> Any:
        """Return the same objective with tensors for numbers."""
        ...


@dataclass(frozen=True)
class LogpKernel:
    """Scores the log-probabilities of the tokens, and looks at nothing else.

    A block is given `token_ids` and `sequence_rows`, [n] each; `stored`, [n] of a stored teacher, and `turn_ids`, [n],
    where there are any; and `ahead/...`, [n] each, what the objective asked for in `look_ahead`.

    Args:
        objective: what is computed.
        step: where training stands.
    """

    objective: TokenLoss
    step: Step

    @property
    def name(self) -> str:
        """What a warning calls it."""
        return type(self.objective).__name__

    @cached_property
    def kind(self) -> Hashable:
        """What the compiler tells apart: the classes that the objective is composed of, and what is computed."""
        flags = tuple(value for value in vars(self).values() if isinstance(value, bool))
        return (type(self), *flags, *(type(part) for _, part in walk(self.objective)))

    def with_tensors(self, number: Number) -> LogpKernel:
        """Return the same kernel, which takes the numbers that change over a run for tensors."""
        objective = self.objective.with_tensors(number, self.step)
        return self if objective is self.objective else replace(self, objective=objective)

    def __call__(self, block: Block) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return `student_logp` and `teacher_logp`, [n] each."""
        rows = self.rows(block)
        return {"student_logp": rows.token_logp(), "teacher_logp": rows.teacher_token_logp()}, None

    def rows(self, block: Block) -> TokenRows:
        """Return the block's tokens as the objective sees them."""
        temperature, given = self.objective.temperature, block.given
        student, teacher = (
            None if logits is None else torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)
            for logits in (block.student, block.teacher)
        )
        assert student is not None, "every block has the student's logits"
        ahead = {name.removeprefix("ahead/"): value for name, value in given.items() if name.startswith("ahead/")}
        return TokenRows(
            student, teacher, given["token_ids"], given["sequence_rows"], self.step, given.get("stored"), ahead,
            given.get("turn_ids"),
        )  # fmt: skip


@dataclass(frozen=True)
class TokenKernel(LogpKernel):
    """Scores the objective's losses, and forms their gradient where that is asked for.

    Where it is, a block may be given `by_loss` and `by_logp`, [n] each: the derivatives of the batch's loss with
    respect to the token's own loss (1 by default) and to the student's log-probability of the token (0).

    Args:
        differentiate: form the gradient.
        metrics: score what is logged, and what the objective asks for the grid.
    """

    differentiate: bool = False
    metrics: bool = True

    def __call__(self, block: Block) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return `loss`, log-probabilities of the tokens, `metric/...` and `score/...`, [n] each; and the gradient."""
        rows = self.rows(block)
        if self.differentiate:
            losses, gradient = self._gradient(rows, block)
        else:
            losses, gradient = self.objective.per_token(rows), None
        scores = {"loss": losses, "student_logp": rows.token_logp(), "teacher_logp": rows.teacher_token_logp()}
        if self.metrics:
            scores |= {f"metric/{name}": value for name, value in self.objective.token_metrics(rows).items()}
            scores["metric/discarded_mass"] = self._discarded(block, rows)
            scores |= {f"score/{name}": value for name, value in self.objective.scores(rows).items()}
        return scores, gradient

    def _gradient(self, rows: TokenRows, block: Block) -> tuple[Tensor, Tensor]:
        """Compute the token losses [n], and the gradient [n, V] of the batch's loss in the student's logits."""
        if self.objective.sampled_tokens_only:
            losses, gradient = torch.zeros_like(rows.token_logp()), torch.zeros_like(rows.student_logp)
        else:
            losses, gradient = self._losses_and_gradient(rows)
        temperature = self.objective.temperature
        if "by_loss" in block.given:
            gradient = gradient.mul_(block.given["by_loss"][:, None])
        if "by_logp" in block.given:
            credit = block.given["by_logp"][:, None]
            gradient = gradient.addcmul_(rows.student_logp.exp(), credit, value=-1)
            gradient = gradient.scatter_add_(1, rows.token_ids[:, None], credit)
        return losses, gradient if temperature == 1 else gradient.div_(temperature)

    def _losses_and_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Compute losses [n] and gradient [n, V] in closed form if that belongs to `per_token`, else by autograd."""
        objective = self.objective
        if belongs(objective, "with_gradient", "per_token"):
            return objective.with_gradient(rows)
        return objective.by_autograd(rows)

    def _discarded(self, block: Block, rows: TokenRows) -> Tensor:
        """Compute the probability of the head's rows without a token, had they been allowed any, [n]."""
        if not block.padding.shape[1]:
            return block.student.new_zeros(len(block.student))
        temperature = self.objective.temperature
        kept = block.student[:, 0] / temperature - rows.student_logp[:, 0]
        return torch.sigmoid((block.padding / temperature).logsumexp(-1) - kept)
