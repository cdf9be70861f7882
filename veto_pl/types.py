"""Every noun of the package, each field with its shape.

Legend: `B` rows, `P` prompt tokens, `C` completion tokens, `T` tokens of a whole row, `S = T - 1` predictions of a row,
`N` completion tokens of a batch, `V` vocabulary, `D` width. Position `t` of a row predicts token `t + 1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.stat import Stat as Stat
from veto_pl.memory import Memories
from veto_pl.padding import pad_left as pad_left
from veto_pl.padding import pad_right as pad_right
from veto_pl.special_ids import end_ids
from veto_pl.step import Step as Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM
    from veto_pl.scores import TopKScores
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
        # Decoding no rows at all gives one empty text.
        texts = tokenizer.batch_decode(sequences.completions(), skip_special_tokens=True) if len(sequences) else []
        scores = self.score(texts, sequences.prompt_rows.tolist())
        return replace(sequences, rewards=torch.tensor(scores, dtype=torch.float32, device=sequences.input_ids.device))


_PROMPT_TENSORS = ("input_ids", "attention_mask", "completion_ids", "completion_mask", "numbers")


@dataclass(frozen=True)
class Sequences:
    """Prompts with completions, whoever wrote them. Any padding layout: only the masks say what is what.

    Args:
        input_ids: [B, T] int64.
        attention_mask: [B, T] bool, False on padding.
        loss_mask: [B, T] bool, True on the completion's tokens, EOS included.
        prompt_rows: [B] int64, the row of the prompt batch that each row continues.
        on_policy: [B] bool, True where the student (or a mixture that holds it) sampled the row.
        sampler_logp: [B, T] float32, log-probability of each completion token under the sampling distribution
            (temperature and truncation included), 0 elsewhere; None where nobody sampled.
        rewards: [B] float32, or None where nothing was scored.
        prompts: the batch that `prompt_rows` points into, with the examples; it is not sliced with the rows.
        by_teacher: [B, T] bool, True on completion tokens that the teacher wrote into a text of the student's; None
            where nobody takes turns.
        age: [B] float32, optimizer steps since the row was written; None where all are fresh.
        teacher_scores: [B, T] what a stored teacher says about each completion token (at the token's own position, not
            at the one that predicts it), or None where a live teacher has to be asked.
    """

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    prompt_rows: Tensor
    on_policy: Tensor
    sampler_logp: Tensor | None = None
    rewards: Tensor | None = None
    prompts: PromptBatch | None = None
    by_teacher: Tensor | None = None
    age: Tensor | None = None
    teacher_scores: TopKScores | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def predictions(self) -> Tensor:
        """[B, S] bool: the positions whose next token counts. The last prompt position is the first of them."""
        return self.loss_mask[:, 1:]

    @property
    def position_ids(self) -> Tensor:
        """[B, T] int64: positions that ignore padding on either side."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)

    def token_ids(self) -> Tensor:
        """[N] int64: the tokens that count, row by row."""
        return self.input_ids[:, 1:][self.predictions]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """[N] and [N] int64: the tokens that count, and the row of each."""
        return self.token_ids(), self.predictions.nonzero()[:, 0]

    def sampled_logp(self) -> Tensor | None:
        """[B, S] float32: `sampler_logp` at the predicting positions."""
        return None if self.sampler_logp is None else self.sampler_logp[:, 1:]

    def completions(self) -> list[Tensor]:
        """The completion's ids of each row, without padding."""
        return [ids[mask] for ids, mask in zip(self.input_ids, self.loss_mask, strict=True)]

    @staticmethod
    def join(repeated: PromptBatch, completion_ids: Tensor, completion_mask: Tensor, **fields: Any) -> Sequences:
        """Puts completions ([B, C], right-padded) behind prompts, one each; `fields` replaces the other defaults."""
        rows = torch.arange(len(repeated), device=repeated.input_ids.device)
        joined = Sequences(
            input_ids=torch.cat([repeated.input_ids, completion_ids], 1),
            attention_mask=torch.cat([repeated.attention_mask, completion_mask], 1),
            loss_mask=torch.cat([torch.zeros_like(repeated.attention_mask), completion_mask], 1),
            prompt_rows=rows,
            on_policy=torch.zeros_like(rows, dtype=torch.bool),
            prompts=repeated,
        )
        return replace(joined, **fields)

    @staticmethod
    def concatenate(parts: Sequence[Sequences]) -> Sequences:
        """The rows of all parts of one prompt batch, right-padded; a field that one part cannot have is dropped."""
        width = max(part.input_ids.shape[1] for part in parts)

        def stack(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            if name in _ABSENT and any(value is not None for value in values):
                values = [_ABSENT[name](p) if v is None else v for p, v in zip(parts, values, strict=True)]
            if any(value is None for value in values):
                return None
            return torch.cat([pad(v, (0, width - v.shape[1])) if v.dim() == 2 else v for v in values])

        columns: dict[str, Any] = {name: stack(name) for name in _SEQUENCE_TENSORS if name != "teacher_scores"}
        return replace(parts[0], **columns, teacher_scores=None)

    def rows(self, index: Tensor) -> Sequences:
        """The rows that `index` ([K] int64, or [B] bool) selects."""
        values = {name: getattr(self, name) for name in _SEQUENCE_TENSORS}
        taken: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
        return replace(self, **taken)

    def continuing(self, prompts: PromptBatch, rows: Tensor) -> Sequences:
        """The same sequences as part of a larger batch, of which they were given the prompts `rows` ([K] int64)."""
        return replace(self, prompts=prompts, prompt_rows=rows[self.prompt_rows])

    def in_prompt_order(self) -> Sequences:
        """The rows in the order of the prompt batch; the completions of one prompt keep theirs."""
        return self.rows(self.prompt_rows.argsort(stable=True))


_ABSENT: Mapping[str, Callable[[Sequences], Tensor]] = {
    "age": lambda part: torch.zeros(len(part), device=part.input_ids.device),
    "by_teacher": lambda part: torch.zeros_like(part.loss_mask),
}
"""What a field means that rows do not have: they are fresh, and nobody took turns."""
_SEQUENCE_TENSORS = tuple(name for name in Sequences.__dataclass_fields__ if name != "prompts")

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
