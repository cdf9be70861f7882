"""One batch of evaluation: the student answers, the task judges, the metrics look on."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from veto_pl.generations import Generations
from veto_pl.metrics import CompletionMetric, TokenMetric, default_metrics
from veto_pl.models.causal_lm import CausalLM, sampling_mode
from veto_pl.models.sharding import gathered
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.types import Models, PromptBatch, Sequences, Step

CHUNK_ROWS = 256
"""Tokens whose vocabulary-sized rows are held at a time."""


def validation_metrics(
    metrics: list[CompletionMetric | TokenMetric] | None, sampling: Sampling, *, with_teacher: bool
) -> nn.ModuleDict:
    """The metrics by name; those that need a teacher are left out where there is none."""
    chosen = default_metrics(sampling.num_completions) if metrics is None else metrics
    usable = [m for m in chosen if with_teacher or not getattr(m, "needs_teacher", False)]
    return nn.ModuleDict({metric.name: metric for metric in usable})


@dataclass(frozen=True)
class Evaluation:
    """The completions of a batch of prompts, judged.

    Args:
        batch: the prompts.
        sequences: prompts and completions.
        generations: texts, rewards and endings.
        models: the models that are compared.
    """

    batch: PromptBatch
    sequences: Sequences
    generations: Generations
    models: Models

    @classmethod
    def sample(cls, batch: PromptBatch, models: Models, sampling: Sampling, step: Step) -> Evaluation:
        """Lets the student answer every prompt of the batch."""
        sequences = FromStudent(sampling)(batch, models, step)
        completions = sequences.completions()
        texts = models.tokenizer.batch_decode(completions, skip_special_tokens=True)
        rewards = batch.score(texts, sequences.prompt_rows.tolist())
        stop = (*sampling.stop, *batch.stop)
        ends = torch.tensor([bool(len(ids)) and int(ids[-1]) in models.eos_ids for ids in completions])
        stopped = torch.tensor([any(end in text for end in stop) for text in texts])
        shape = (len(batch), sampling.num_completions)
        generations = Generations(
            texts=texts,
            tokens=[ids.tolist() for ids in completions],
            rewards=torch.tensor(rewards).reshape(shape),
            finished=(ends | stopped).reshape(shape),
            examples=batch.examples,
        )
        return cls(batch, sequences, generations, models)

    def update(self, metrics: Iterable[nn.Module]) -> None:
        """Shows the completions to the metrics of completions, and the distributions to those of tokens."""
        listed = list(metrics)
        for metric in listed:
            if isinstance(metric, CompletionMetric):
                metric.update(self.generations)
        token_metrics = [metric for metric in listed if isinstance(metric, TokenMetric)]
        if token_metrics:
            self._compare(token_metrics)

    def rows(self) -> list[dict[str, Any]]:
        """One row per completion: prompt, completion, reference and reward."""
        examples = [self.batch.examples[i] for i in self.sequences.prompt_rows.tolist()]
        prompts = self.models.tokenizer.batch_decode(
            [ids[mask] for ids, mask in zip(self.batch.input_ids, self.batch.attention_mask, strict=True)]
        )
        return [
            {"prompt": prompts[row], "completion": text, "reference": example.completion, "reward": reward}
            for row, text, example, reward in zip(
                self.sequences.prompt_rows.tolist(),
                self.generations.texts,
                examples,
                self.generations.rewards.flatten().tolist(),
                strict=True,
            )
        ]

    def _compare(self, metrics: list[TokenMetric]) -> None:
        hidden = self._hidden(self.models.student)
        teacher = self.models.teacher
        teacher_hidden = None if teacher is None else self._hidden(teacher)
        with ExitStack() as stack:
            for model in filter(None, (self.models.student, teacher)):
                stack.enter_context(gathered(model, head_only=True))
            for start in range(0, len(hidden), CHUNK_ROWS):
                rows = slice(start, start + CHUNK_ROWS)
                student_logp = _logp(self.models.student, hidden[rows])
                teacher_logp = None if teacher_hidden is None else _logp(cast(CausalLM, teacher), teacher_hidden[rows])
                for metric in metrics:
                    metric.update(student_logp, teacher_logp)

    def _hidden(self, model: CausalLM) -> Tensor:
        with sampling_mode(model):
            hidden: Tensor = model(self.sequences, lambda hidden, _: hidden)
        return hidden


def _logp(model: CausalLM, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(model.project(hidden)[0], -1)
