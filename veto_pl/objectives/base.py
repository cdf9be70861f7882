"""Objectives made of token losses: the road from hidden states to an undivided loss."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from veto_pl.contexts import SameText
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.chunked import map_rows
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.divergences import reverse_kl
from veto_pl.functional.reduction import sequence_mean_sum, token_sum
from veto_pl.models.causal_lm import CausalLM, sampling_mode
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Objective, RolloutSource, TeacherContext
from veto_pl.tokens import TokenGrid, TokenRows
from veto_pl.types import LossOutput, Models, Rollouts, Sequences, Stat, Step


@dataclass(frozen=True, kw_only=True)
class TokenObjective(Objective):
    """A loss for every completion token; subclasses say which, in `per_token`.

    Args:
        rollout: who writes the completions.
        context: what the teacher reads.
        temperature: divides the logits of student and teacher in the loss; it never shapes the rollout. The loss is not
            multiplied by its square.
        aggregation: `token` weighs every token alike, `sequence` every completion.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time.
    """

    rollout: RolloutSource = FromDataset()
    context: TeacherContext = SameText()
    temperature: float = 1.0
    aggregation: Literal["token", "sequence"] = "token"
    chunk_rows: int = 2048

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not self.temperature > 0:
            raise ConfigurationError(f"`{name}.temperature` must be positive, got {self.temperature}.")
        if self.chunk_rows < 1:
            raise ConfigurationError(f"`{name}.chunk_rows` must be at least 1, got {self.chunk_rows}.")

    @abstractmethod
    def per_token(self, rows: TokenRows) -> Tensor:
        """[n] losses of one chunk of tokens."""

    def over_sequences(self, losses: Tensor, grid: TokenGrid) -> Tensor:
        """[B, S] losses once the whole micro-batch is known; by default the token losses as they are."""
        return losses

    def token_metrics(self, rows: TokenRows) -> dict[str, Tensor]:
        """[n] values to log beside the loss; called without gradients."""
        metrics = {"entropy": entropy(rows.student_logp)}
        if rows.teacher_logp is not None:
            metrics["kl"] = reverse_kl(rows.student_logp, rows.teacher_logp)
        return metrics

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """The one rollout."""
        return (self.rollout,)

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Runs teacher and student over the rollout and sums the losses of its completion tokens."""
        sequences = rollouts[self.rollout]
        teacher_hidden = self._read_teacher(sequences, models, step) if self.needs_teacher else None
        chunk = partial(self._chunk, models=models, step=step)

        def readout(hidden: Tensor, _: CausalLM) -> dict[str, Tensor]:
            return map_rows(chunk, [hidden, teacher_hidden, *sequences.tokens()], self.chunk_rows)

        scores: dict[str, Tensor] = models.student(sequences, readout)
        return self._reduce(scores, sequences, step)

    def _read_teacher(self, sequences: Sequences, models: Models, step: Step) -> Tensor:
        teacher = models.required_teacher()
        with sampling_mode(teacher):
            hidden: Tensor = teacher(self.context(sequences, models, step), lambda hidden, _: hidden)
        return hidden

    def _chunk(
        self,
        hidden: Tensor,
        teacher_hidden: Tensor | None,
        token_ids: Tensor,
        sequence_rows: Tensor,
        *,
        models: Models,
        step: Step,
    ) -> dict[str, Tensor]:
        """Everything vocabulary-sized happens here; only [n] scalars leave."""
        logits, discarded = models.student.project(hidden)
        teacher_logp = None
        if teacher_hidden is not None:
            with torch.no_grad():
                teacher_logits, _ = models.required_teacher().project(teacher_hidden)
                teacher_logp = torch.log_softmax(teacher_logits / self.temperature, -1)
        rows = TokenRows(torch.log_softmax(logits / self.temperature, -1), teacher_logp, token_ids, sequence_rows, step)
        scores = {
            "loss": self.per_token(rows),
            "student_logp": rows.token_logp(),
            "teacher_logp": rows.teacher_token_logp(),
        }
        with torch.no_grad():
            scores |= {f"metric/{name}": value for name, value in self.token_metrics(rows).items()}
        return scores | {"metric/discarded_mass": discarded}

    def _reduce(self, scores: dict[str, Tensor], sequences: Sequences, step: Step) -> LossOutput:
        mask = sequences.predictions
        grid = TokenGrid(
            student_logp=_on_grid(scores["student_logp"], mask),
            teacher_logp=_on_grid(scores["teacher_logp"], mask).detach(),
            sampler_logp=sequences.sampled_logp(),
            mask=mask,
            prompt_rows=sequences.prompt_rows,
            rewards=sequences.rewards,
            step=step,
        )
        losses = self.over_sequences(_on_grid(scores["loss"], mask), grid)
        reduce = token_sum if self.aggregation == "token" else sequence_mean_sum
        count = mask.sum().to(losses.dtype)
        metrics = {
            name.removeprefix("metric/"): Stat(value.sum(), count)
            for name, value in scores.items()
            if name.startswith("metric/")
        }
        metrics["on_policy"] = Stat(sequences.on_policy.sum().float(), count.new_tensor(float(len(sequences))))
        return LossOutput({"loss": Stat(*reduce(losses, mask))}, metrics)


def _on_grid(values: Tensor, mask: Tensor) -> Tensor:
    """Puts [N] values back to where `mask` [B, S] is True; 0 elsewhere, and connected to the graph for N = 0."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values) + 0.0 * values.sum()
