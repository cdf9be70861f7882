"""The seams of rollouts: who writes completions, what runs a model to sample, and what the teacher reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from veto_pl.core.memory import Memories, Remembers
from veto_pl.core.sampling import Sampling
from veto_pl.core.special_ids import end_ids
from veto_pl.core.step import Step
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams.batches import PromptBatch, Sequences
from veto_pl.seams.models import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    student: LanguageModel
    teacher: LanguageModel | None
    tokenizer: PreTrainedTokenizerBase
    memories: Memories = field(default_factory=Memories)
    reference: LanguageModel | None = None
    rollouts: Rollouts = field(default_factory=dict)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a completion of the student's: the tokenizer's EOS and those of its generation settings."""
        return self.ends_of()

    def ends_of(self, *writers: LanguageModel) -> tuple[int, ...]:
        """Ids that end a text of these writers: the student's, and those of every other model that takes part."""
        return tuple(sorted({i for one in (self.student, *writers) for i in end_ids(self.tokenizer, one.model)}))

    @property
    def sharded(self) -> bool:
        """Whether every rank has to take part when the student runs."""
        return self.student.shards is not None

    def required_teacher(self) -> LanguageModel:
        """The teacher; raises `ConfigurationError` where the run has none."""
        return _required("teacher", self.teacher)

    def required_reference(self) -> LanguageModel:
        """The reference model; raises `ConfigurationError` where the run has none."""
        return _required("reference", self.reference)

    def rolled_out(self, source: RolloutSource, prompts: PromptBatch, step: Step) -> Sequences:
        """What `source` writes for the prompts, for a source that builds on another: written once if both are used."""
        done = self.rollouts.get(source)
        return done if done is not None and done.prompts is prompts else source(prompts, self, step)


class RolloutSource(Remembers, ABC):
    """Who writes the completions. With `stored_teacher` they bring the teacher's scores along, so none is loaded."""

    stored_teacher: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        """Completes the prompts."""


Rollouts = Mapping[RolloutSource, Sequences]


class Engine(ABC):
    """What runs a model to sample from it."""

    @abstractmethod
    def generate(
        self,
        prompts: PromptBatch,
        model: LanguageModel,
        sampling: Sampling,
        models: Models,
        step: Step,
        *,
        on_policy: bool,
    ) -> Sequences:
        """`sampling.num_completions` completions of every prompt, in prompt order, with the sampler's log-probs."""


class TeacherContext(ABC):
    """What the teacher reads: the same text, or the same completion behind another prompt."""

    needs_rewards: ClassVar[bool] = False
    compares_completions: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        """Rows that hold the same completion tokens in the same order. `sequences.prompts` has the examples."""

    def informed(self, sequences: Sequences) -> Tensor:
        """[B] bool: the rows of which the teacher is told what there is to tell."""
        return sequences.on_policy | True


def _required(role: str, model: LanguageModel | None) -> LanguageModel:
    if model is None:
        raise ConfigurationError(f"The objective needs a {role}, but `model.{role}` is not set. Name one there.")
    return model
