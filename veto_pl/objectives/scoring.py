"""How a token objective is evaluated: rows through the heads, scalars over the batch, gradients back into the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.chunked import Block, Kernel, RowStream
from veto_pl.functional.differentiation import belongs
from veto_pl.functional.policy import importance_weight
from veto_pl.functional.reduction import sequence_mean_sum, token_sum
from veto_pl.seams import Faults, LossOutput, RolloutSource, Sequences, Stat, Step
from veto_pl.seams.tokens import TokenGrid, TokenRows


class TokenLoss(Protocol):
    """What scoring asks of an objective; `TokenObjective` says what each of them means."""

    needs_teacher: ClassVar[bool]

    @property
    def rollout(self) -> RolloutSource:
        """Return who writes the completions."""
        ...

    @property
    def temperature(self) -> float:
        """Return what divides the logits."""
        ...

    @property
    def aggregation(self) -> Literal["token", "sequence"]:
        """Return whether tokens or completions weigh alike."""
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


@dataclass(frozen=True)
class LossDerivatives:
    """The derivatives of the batch's loss with respect to scalars of each token.

    Args:
        loss: [N] with respect to the token's own loss; None where it is 1 for all.
        logp: [N] with respect to the student's log-probability of the token; None where it is 0 for all.
    """

    loss: Tensor | None
    logp: Tensor | None


class Scoring:
    """One micro-batch under one objective.

    Args:
        objective: what is computed.
        sequences: the rollout.
        step: where training stands.
        reference_logp: [N] of the tokens under the reference model, or None.
    """

    def __init__(
        self, objective: TokenLoss, sequences: Sequences, step: Step, reference_logp: Tensor | None = None
    ) -> None:
        self.objective = objective
        self.sequences = sequences
        self.step = step
        self.reference_logp = reference_logp
        self.token_ids, self.sequence_rows = sequences.tokens()
        self.stored = self._stored_scores()
        self.engine_weights = self._engine_weights()
        self.ahead: dict[str, Tensor] = {}

    def run(self, stream: RowStream) -> tuple[Tensor, LossOutput]:
        """Return the total with its graph, and everything that is logged.

        Where the losses of the tokens are merely added, their gradients are formed with them, in one pass. Where they
        are coupled (advantages, importance weights), a first pass scores the tokens, the coupling is differentiated on
        scalars, and a second pass forms the gradients. Rows that fit into one chunk are not projected again.
        """
        if self.objective.looks_ahead:
            self.look_ahead(stream.scores(self._token_logps))
        if not torch.is_grad_enabled():
            output = self.reduce(stream.scores(self._kernel(None)))
            return output.terms["loss"].total, output
        if self.objective.couples_tokens:
            output, derivatives = self._differentiate(stream.scores(self._kernel(None)))
            alone = self.objective.sampled_tokens_only
            _, gradients = stream.gradients(self._kernel(derivatives, metrics=False), with_teacher=not alone)
        else:
            scores, gradients = stream.gradients(self._kernel(self._constant_derivatives()))
            output = self.reduce(scores)
        output = self._with_gradient_faults(output, gradients.hidden)
        return gradients.attach(output.terms["loss"].total, stream.hidden, stream.head), output

    def reduce(self, scores: dict[str, Tensor]) -> LossOutput:
        """Sum the scores [N] over the batch, in the graph that they have."""
        mask = self.sequences.predictions
        losses = self.objective.over_sequences(_on_grid(scores["loss"], mask), self._grid(scores))
        if self.engine_weights is not None:
            losses = losses * self.engine_weights
        reduce = token_sum if self.objective.aggregation == "token" else sequence_mean_sum
        count = mask.sum().float()
        metrics = {name: Stat(value.sum(), count) for name, value in _with_prefix("metric/", scores)}
        rows = torch.full_like(count, len(self.sequences))
        metrics["on_policy"] = Stat(self.sequences.on_policy.sum().float(), rows)
        broken = (~losses.detach().isfinite() & mask).any(1)
        faults = {self.objective.rollout: Faults(loss=broken, gradient=torch.zeros_like(broken))}
        return LossOutput({"loss": Stat(*reduce(losses, mask))}, metrics, faults)

    def look_ahead(self, scores: dict[str, Tensor]) -> None:
        """Ask the objective for numbers of whole completions, given `student_logp` and `teacher_logp` [N]."""
        numbers = self.objective.look_ahead(self._grid(scores))
        self.ahead = {name: value.flatten()[self.sequences.prediction_index] for name, value in numbers.items()}

    def _grid(self, scores: dict[str, Tensor]) -> TokenGrid:
        mask = self.sequences.predictions
        return TokenGrid(
            student_logp=_on_grid(scores["student_logp"], mask),
            teacher_logp=_on_grid(scores["teacher_logp"], mask),
            sampler_logp=self.sequences.sampled_logp(),
            mask=mask,
            prompt_rows=self.sequences.prompt_rows,
            rewards=self.sequences.rewards,
            step=self.step,
            reference_logp=None if self.reference_logp is None else _on_grid(self.reference_logp, mask),
            age=self.sequences.age,
            scores={name: _on_grid(value, mask) for name, value in _with_prefix("score/", scores)},
        )

    def _with_gradient_faults(self, output: LossOutput, of_hidden: Tensor | None) -> LossOutput:
        """Mark the rows whose hidden states have a gradient [N, D] that is not finite; no host waits for this."""
        if of_hidden is None:
            return output
        broken = _on_grid(~of_hidden.isfinite().all(1), self.sequences.predictions).any(1)
        faults = {source: replace(known, gradient=broken) for source, known in output.faults.items()}
        return replace(output, faults=faults)

    def _kernel(self, derivatives: LossDerivatives | None, *, metrics: bool = True) -> Kernel:
        """Return the kernel that scores a block of rows; without `derivatives` it forms no gradient.

        Everything vocabulary-sized happens in the kernel; only [n] scalars and the block's gradient leave it.
        """

        def kernel(block: Block) -> tuple[dict[str, Tensor], Tensor | None]:
            rows = self._rows(block)
            if derivatives is None:
                losses, gradient = self.objective.per_token(rows), None
            else:
                losses, gradient = self._gradient(rows, derivatives, block.rows)
            scores = {"loss": losses, "student_logp": rows.token_logp(), "teacher_logp": rows.teacher_token_logp()}
            if metrics:
                scores |= {f"metric/{name}": value for name, value in self.objective.token_metrics(rows).items()}
                scores["metric/discarded_mass"] = self._discarded(block, rows)
                scores |= {f"score/{name}": value for name, value in self.objective.scores(rows).items()}
            return scores, gradient

        return kernel

    def _token_logps(self, block: Block) -> tuple[dict[str, Tensor], None]:
        """Return the log-probabilities of a block's tokens, [n] each; a kernel that looks at nothing else."""
        rows = self._rows(block)
        return {"student_logp": rows.token_logp(), "teacher_logp": rows.teacher_token_logp()}, None

    def _rows(self, block: Block) -> TokenRows:
        temperature = self.objective.temperature
        student, teacher = (
            None if logits is None else torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)
            for logits in (block.student, block.teacher)
        )
        assert student is not None, "every block has the student's logits"
        stored = None if self.stored is None else self.stored[block.rows]
        ahead = {name: value[block.rows] for name, value in self.ahead.items()}
        return TokenRows(
            student, teacher, self.token_ids[block.rows], self.sequence_rows[block.rows], self.step, stored, ahead
        )

    def _gradient(self, rows: TokenRows, derivatives: LossDerivatives, place: slice) -> tuple[Tensor, Tensor]:
        """Compute the token losses [n], and the gradient [n, V] of the batch's loss in the student's logits."""
        if self.objective.sampled_tokens_only:
            losses, gradient = torch.zeros_like(rows.token_logp()), torch.zeros_like(rows.student_logp)
        else:
            losses, gradient = self._losses_and_gradient(rows)
        temperature = self.objective.temperature
        if derivatives.loss is not None:
            gradient = gradient.mul_(derivatives.loss[place, None])
        if derivatives.logp is not None:
            credit = derivatives.logp[place, None]
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

    def _constant_derivatives(self) -> LossDerivatives:
        """Return the derivatives for losses that are merely added: they do not depend on the losses' values."""
        if self.objective.aggregation == "token" and self.engine_weights is None:
            return LossDerivatives(None, None)
        zeros = torch.zeros_like(self.token_ids, dtype=torch.float32)
        _, derivatives = self._differentiate(dict.fromkeys(("loss", "student_logp", "teacher_logp"), zeros))
        return LossDerivatives(derivatives.loss, None)

    def _differentiate(self, scores: dict[str, Tensor]) -> tuple[LossOutput, LossDerivatives]:
        """Reduce scores, and differentiate the sum with respect to the losses and log-probabilities."""
        leaves = {name: scores[name].clone().requires_grad_() for name in ("loss", "student_logp")}
        with torch.enable_grad():
            output = self.reduce({**scores, **leaves})
        total = output.terms["loss"].total
        derivatives = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return output, LossDerivatives(*derivatives)

    def _engine_weights(self) -> Tensor | None:
        """Return the weights [B, S] for another arithmetic of the engine; None where there are none."""
        ratio, cap = self.sequences.engine_log_ratio, self.objective.engine_cap
        if ratio is None or cap is None or self.objective.weighs_samples:
            return None
        return importance_weight(ratio[:, 1:], torch.zeros_like(ratio[:, 1:]), cap)

    def _stored_scores(self) -> TopKScores | None:
        """Return what a stored teacher says of the tokens, [N], or None where a live one is asked.

        `ConfigurationError` is raised where the scores are missing or of another temperature.
        """
        scores = self.sequences.teacher_scores
        if self.objective.needs_teacher or not self.objective.rollout.stored_teacher:
            return None
        if scores is None:
            raise ConfigurationError(
                f"`{type(self.objective.rollout).__name__}` has `stored_teacher`, but its sequences have no "
                "`teacher_scores`. Fill them in, or leave `stored_teacher` out."
            )
        scores.check_temperature(type(self.objective).__name__, self.objective.temperature)
        row, place = self.sequence_rows, self.sequences.prediction_index % self.sequences.predictions.shape[1]
        return scores[row, place + 1]


def _with_prefix(prefix: str, scores: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Return the scores whose name begins with `prefix`, by what follows it."""
    return ((name.removeprefix(prefix), value) for name, value in scores.items() if name.startswith(prefix))


def _on_grid(values: Tensor, mask: Tensor) -> Tensor:
    """Put [N] values back to where `mask` [B, S] is True; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
