"""How a token objective is evaluated: rows through the heads, scalars over the batch, gradients back into the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.nested import inside
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.gradients import Gradients
from veto_pl.functional.panel_stream import PanelStream
from veto_pl.functional.policy import importance_weight
from veto_pl.functional.reduction import aggregated, sums_by_turn
from veto_pl.objectives.token_kernel import LogpKernel, TokenKernel, TokenLoss
from veto_pl.objectives.told_readings import of_tokens
from veto_pl.objectives.voices import Voices
from veto_pl.seams import Faults, LossOutput, PlayingSource, Sequences, Stat, Step, TokenValues
from veto_pl.seams.tokens import TokenGrid


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
        voices: the teachers that speak of the tokens; None for one, or none at all.
        contrast_logp: [K, B, S] of the tokens under the teacher in further contexts, or None.
    """

    def __init__(
        self,
        objective: TokenLoss,
        sequences: Sequences,
        step: Step,
        reference_logp: Tensor | None = None,
        voices: Voices | None = None,
        contrast_logp: Tensor | None = None,
    ) -> None:
        self.objective = objective
        self.sequences = sequences
        self.step = step
        self.reference_logp = reference_logp
        self.contrast_logp = contrast_logp
        self.token_ids, self.sequence_rows = sequences.tokens()
        self.voices = Voices.alone(len(self.token_ids)) if voices is None else voices
        self.stored = self._stored_scores()
        self.engine_weights = self._engine_weights()
        self.turn_ids = None if sequences.turn_ids is None else sequences.turn_ids[:, 1:]
        playing = inside(objective.rollout, PlayingSource)  # type: ignore[type-abstract]
        self.measured_turns = max((one.measured_turns for one in playing), default=0)
        self.ahead: dict[str, Tensor] = {}

    def run(self, stream: PanelStream) -> tuple[Tensor, LossOutput]:
        """Return the total with its graph, and everything that is logged.

        Where the losses of the tokens are merely added, their gradients are formed with them, in one pass. Where they
        are coupled (advantages, importance weights), a first pass scores the tokens, the coupling is differentiated on
        scalars, and a second pass forms the gradients. Rows that fit into one chunk are not projected again.
        """
        if self.objective.looks_ahead:
            self.look_ahead(self.voices.joined(stream.scores(LogpKernel(self.objective, self.step), self._given())))
        if not torch.is_grad_enabled():
            parts = stream.scores(self._kernel(), self._given())
            output = self._with_metrics_by_teacher(self.reduce(self.voices.joined(parts)), parts)
            return output.terms["loss"].total, output
        if self.objective.couples_tokens:
            parts = stream.scores(self._kernel(), self._given())
            output, derivatives = self._differentiate(self.voices.joined(parts))
            gradients = self._coupled_gradients(stream, derivatives)
        else:
            given = self._given(self._constant_derivatives())
            parts, gradients = stream.gradients(self._kernel(differentiate=True), given)
            output = self.reduce(self.voices.joined(parts))
        output = self._with_metrics_by_teacher(self._with_gradient_faults(output, gradients.hidden), parts)
        return gradients.attach(output.terms["loss"].total, stream.hidden, stream.head), output

    def _coupled_gradients(self, stream: PanelStream, derivatives: LossDerivatives) -> Gradients:
        """Return the gradients where the derivatives of the batch's loss in its scalars are known."""
        kernel = self._kernel(differentiate=True, metrics=False)
        if self.objective.sampled_tokens_only:
            (given,) = self._given(derivatives, Voices.alone(len(self.token_ids)))
            return stream.student_gradients(kernel, given)
        return stream.gradients(kernel, self._given(derivatives))[1]

    def _with_metrics_by_teacher(self, output: LossOutput, parts: list[dict[str, Tensor]]) -> LossOutput:
        return replace(output, metrics={**output.metrics, **self.voices.metrics(parts)})

    def reduce(self, scores: dict[str, Tensor]) -> LossOutput:
        """Sum the scores [N] over the batch, in the graph that they have."""
        mask = self.sequences.predictions
        losses = self.objective.over_sequences(on_grid(scores["loss"], mask), self._grid(scores))
        if self.engine_weights is not None:
            losses = losses * self.engine_weights
        total = aggregated(self.objective.aggregation, losses, mask, self.turn_ids, self.sequences.episodes)
        count = mask.sum().float()
        metrics = {name: Stat(value.sum(), count) for name, value in _with_prefix("metric/", scores)}
        rows = torch.full_like(count, len(self.sequences))
        metrics |= self._kl_by_turn(scores)
        metrics["on_policy"] = Stat(self.sequences.on_policy.sum().float(), rows)
        broken = (~losses.detach().isfinite() & mask).any(1)
        faults = {self.objective.rollout: Faults(loss=broken, gradient=torch.zeros_like(broken))}
        tokens = {"loss": TokenValues(self.sequences, _told(scores))}
        return LossOutput({"loss": Stat(*total)}, metrics, faults, tokens)

    def _kl_by_turn(self, scores: dict[str, Tensor]) -> dict[str, Stat]:
        """Return the KL to the teacher at each turn of the agent; the names are the same on all ranks."""
        kl, most = scores.get("metric/kl"), self.measured_turns
        if kl is None or not most:
            return {}
        mask = self.sequences.predictions
        sums, counts = sums_by_turn(on_grid(kl.detach(), mask), mask, self.turn_ids, most)
        return {f"turn_{k}/kl": Stat(*of) for k, of in enumerate(zip(sums, counts, strict=True), 1)}

    def look_ahead(self, scores: dict[str, Tensor]) -> None:
        """Ask the objective for numbers of whole completions, given `student_logp` and `teacher_logp` [N]."""
        numbers = self.objective.look_ahead(self._grid(scores))
        self.ahead = {name: value.flatten()[self.sequences.prediction_index] for name, value in numbers.items()}

    def _grid(self, scores: dict[str, Tensor]) -> TokenGrid:
        mask = self.sequences.predictions
        return TokenGrid(
            student_logp=on_grid(scores["student_logp"], mask),
            teacher_logp=on_grid(scores["teacher_logp"], mask),
            sampler_logp=self.sequences.sampled_logp(),
            mask=mask,
            prompt_rows=self.sequences.prompt_rows,
            rewards=self.sequences.rewards,
            step=self.step,
            reference_logp=None if self.reference_logp is None else on_grid(self.reference_logp, mask),
            age=self.sequences.age,
            scores={name: on_grid(value, mask) for name, value in _with_prefix("score/", scores)},
            turn_ids=self.turn_ids,
            episodes=self.sequences.episodes,
            contrast_logp=self.contrast_logp,
        )

    def _with_gradient_faults(self, output: LossOutput, of_hidden: Tensor | None) -> LossOutput:
        """Mark the rows whose hidden states have a gradient [N, D] that is not finite; no host waits for this."""
        if of_hidden is None:
            return output
        broken = on_grid(~of_hidden.isfinite().all(1), self.sequences.predictions).any(1)
        faults = {source: replace(known, gradient=broken) for source, known in output.faults.items()}
        return replace(output, faults=faults)

    def _kernel(self, *, differentiate: bool = False, metrics: bool = True) -> TokenKernel:
        return TokenKernel(self.objective, self.step, differentiate=differentiate, metrics=metrics)

    def _given(self, derivatives: LossDerivatives | None = None, voices: Voices | None = None) -> list[dict[str, Any]]:
        """Return what the kernels read beside the logits of each reading, by the names that `TokenKernel` knows."""
        given: dict[str, Any] = {"token_ids": self.token_ids, "sequence_rows": self.sequence_rows}
        if self.stored is not None:
            given["stored"] = self.stored
        if self.turn_ids is not None:
            given["turn_ids"] = self.turn_ids.flatten()[self.sequences.prediction_index]
        given |= {f"ahead/{name}": value for name, value in self.ahead.items()}
        by = {} if derivatives is None else {"by_loss": derivatives.loss, "by_logp": derivatives.logp}
        known = {name: value for name, value in by.items() if value is not None}
        return (voices or self.voices).given(given, known)

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
        return of_tokens(scores, self.sequences)


def _told(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores [N] by the names that are logged; they are there anyway, so this takes no memory."""
    return {name.removeprefix("metric/").removeprefix("score/"): value.detach() for name, value in scores.items()}


def _with_prefix(prefix: str, scores: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Return the scores whose name begins with `prefix`, by what follows it."""
    return ((name.removeprefix(prefix), value) for name, value in scores.items() if name.startswith(prefix))


def on_grid(values: Tensor, mask: Tensor) -> Tensor:
    """Put [N] values back to where `mask` [B, S] is True; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
