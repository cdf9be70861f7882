"""Every noun of the package, each field with its shape.

Legend: `B` rows, `P` prompt tokens, `C` completion tokens, `T` tokens of a whole row, `S = T - 1` predictions of a row,
`N` completion tokens of a batch, `V` vocabulary, `D` width. Position `t` of a row predicts token `t + 1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.stat import Stat as Stat
from veto_pl.memory import Memories
from veto_pl.padding import pad_left as pad_left
from veto_pl.padding import pad_right as pad_right
from veto_pl.sequences import Ending as Ending
from veto_pl.sequences import Sequences as Sequences
from veto_pl.special_ids import end_ids
from veto_pl.step import Step as Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM
    from veto_pl.seams import RolloutSource, Task, Template


@dataclass(frozen=True)
class Faults:
    """Which rows of a rollout have numbers that are not finite.

    Args:
        loss: [B] bool, True where the loss of a token is not.
        gradient: [B] bool, True where the gradient of a hidden state is not.
    """

    loss: Tensor
    gradient: Tensor

    def __or__(self, other: Faults) -> Faults:
        return Faults(self.loss | other.loss, self.gradient | other.gradient)


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns.

    Args:
        terms: undivided losses, each with its own denominator.
        metrics: undivided numbers to log beside them.
        faults: the rows of each rollout that cannot be trained on, as far as the objective knows; they are reported.
    """

    terms: Mapping[str, Stat]
    metrics: Mapping[str, Stat] = field(default_factory=dict)
    faults: Mapping[RolloutSource, Faults] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One row of a task: the text before templating, its references if there are any, and the raw row.

    Args:
        prompt: the text before templating.
        completion: the reference that is trained on.
        row: the row as the task read it.
        alternatives: references that are as good as `completion`, for judging.
    """

    prompt: str
    completion: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All references."""
        return self.alternatives if self.completion is None else (self.completion, *self.alternatives)


@dataclass(frozen=True)
class PromptBatch:
    """Templated and tokenised prompts, left-padded, with the reference completions, right-padded.

    Args:
        input_ids: [B, P] int64.
        attention_mask: [B, P] bool.
        completion_ids: [B, C] int64, EOS included; C may be 0.
        completion_mask: [B, C] bool.
        examples: B rows as the task gave them.
        task: scores completions of these rows; None where nothing can be scored.
        template: made the prompts' texts; None where nobody can make others.
        numbers: [B] int64, the place of each row in its split, which its random numbers depend on; None counts the rows
            of the batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    examples: tuple[Example, ...] = ()
    task: Task | None = None
    numbers: Tensor = None  # type: ignore[assignment]  # filled in below
    template: Template | None = None

    def __post_init__(self) -> None:
        if cast("Tensor | None", self.numbers) is None:
            object.__setattr__(self, "numbers", torch.arange(len(self), device=self.input_ids.device))

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptBatch:
        """The same batch with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _PROMPT_TENSORS}
        return replace(self, **moved)

    def rows(self, index: Tensor) -> PromptBatch:
        """The rows that `index` ([K] int64) names, in that order, repeats allowed."""
        taken = {name: getattr(self, name)[index] for name in _PROMPT_TENSORS}
        examples = tuple(self.examples[i] for i in index.tolist()) if self.examples else ()
        return replace(self, examples=examples, **taken)

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a completion of the task."""
        return () if self.task is None else self.task.stop

    def score(self, completions: Sequence[str], rows: Sequence[int]) -> list[float]:
        """The task's reward of each completion; `rows` names the prompt of each."""
        if self.task is None:
            return [0.0] * len(completions)
        return self.task.rewards([self.examples[i] for i in rows], completions)

    def rewarded(self, sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> Sequences:
        """The same sequences with the task's reward of each."""
        scores = self.score(sequences.texts(tokenizer), sequences.prompt_rows.tolist())
        return replace(sequences, rewards=torch.tensor(scores, dtype=torch.float32, device=sequences.input_ids.device))


_PROMPT_TENSORS = ("input_ids", "attention_mask", "completion_ids", "completion_mask", "numbers")


Rollouts = Mapping["RolloutSource", Sequences]


@dataclass(frozen=True)
class Models:
    """The models of a run. Not a `torch.nn.Module`, so the frozen teacher stays out of checkpoints and optimizers.

    Args:
        student: the model that is trained.
        teacher: the frozen model, or None for objectives that need none.
        tokenizer: shared by all.
        memories: what rollout sources remember from step to step.
        reference: another frozen model, such as the student's start, or None.
        rollouts: what other sources have written for the same prompts, as far as the micro-batch has come.
    """

    student: CausalLM
    teacher: CausalLM | None
    tokenizer: PreTrainedTokenizerBase
    memories: Memories = field(default_factory=Memories)
    reference: CausalLM | None = None
    rollouts: Rollouts = field(default_factory=dict)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a completion of the student's: the tokenizer's EOS and those of its generation settings."""
        return self.ends_of()

    def ends_of(self, *writers: CausalLM) -> tuple[int, ...]:
        """Ids that end a text of these writers: the student's, and those of every other model that takes part."""
        return tuple(sorted({i for one in (self.student, *writers) for i in end_ids(self.tokenizer, one.model)}))

    @property
    def sharded(self) -> bool:
        """Whether every rank has to take part when the student runs."""
        return self.student.shards is not None

    def required_teacher(self) -> CausalLM:
        """The teacher; raises `ConfigurationError` where the run has none."""
        return _required("teacher", self.teacher)

    def required_reference(self) -> CausalLM:
        """The reference model; raises `ConfigurationError` where the run has none."""
        return _required("reference", self.reference)

    def rolled_out(self, source: RolloutSource, prompts: PromptBatch, step: Step) -> Sequences:
        """What `source` writes for the prompts, for a source that builds on another: written once if both are used."""
        done = self.rollouts.get(source)
        return done if done is not None and done.prompts is prompts else source(prompts, self, step)


def _required(role: str, model: CausalLM | None) -> CausalLM:
    if model is None:
        raise ConfigurationError(f"The objective needs a {role}, but `model.{role}` is not set. Name one there.")
    return model
