"""The seams of rollouts: who writes completions, and what runs a model to sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veto_pl.core.laws import Law
from veto_pl.core.memory import Memories, Remembers
from veto_pl.core.nested import given
from veto_pl.core.part import Part
from veto_pl.core.sampling import Sampling
from veto_pl.core.scores import TopKScores
from veto_pl.core.special_ids import end_ids
from veto_pl.core.step import Step
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.compiled_numbers import Number
from veto_pl.seams.batches import Sequences
from veto_pl.seams.engine_sessions import Session
from veto_pl.seams.models import LanguageModel
from veto_pl.seams.prompts import PromptBatch
from veto_pl.seams.score_source import ScoreSource
from veto_pl.seams.teacher_names import TEACHER, listed, required, setting_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Models:
    """The models of a run. Not a `torch.nn.Module`, so the frozen teacher stays out of checkpoints and optimizers.

    Args:
        student: the model that is trained.
        teacher: the frozen model, or None for objectives that need none.
        tokenizer: of the student, and of all that have none of their own.
        memories: what rollout sources remember from step to step.
        reference: another frozen model, such as the student's start, or None.
        rollouts: what other sources have written for the same prompts, as far as the micro-batch has come.
        teachers: further frozen models by their names in `model.teachers`; `teacher` is not among them.
        tokenizers: of the teachers that read ids of their own, by the teacher's name.
        brought: the tokenizers that teachers with the student's ids bring along, by the teacher's name: how they write
            prompts and end texts is their own.
        teacher_name: under which the one teacher is known.
        tellers: teachers without a model here, by name; `teacher` may be among them.
        images: reads the images of rows (`data/image_reader.py`); None where nobody has said what does.
    """

    student: LanguageModel
    teacher: LanguageModel | None
    tokenizer: PreTrainedTokenizerBase
    memories: Memories = field(default_factory=Memories)
    reference: LanguageModel | None = None
    rollouts: Rollouts = field(default_factory=dict)
    teachers: Mapping[str, LanguageModel] = field(default_factory=dict)
    tokenizers: Mapping[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    brought: Mapping[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    teacher_name: str = TEACHER
    tellers: Mapping[str, ScoreSource] = field(default_factory=dict)
    images: Any = None

    @property
    def teacher_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of the one teacher where it reads ids of its own; None where it has the shared one."""
        return self.tokenizers.get(TEACHER)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Return the ids that end a completion of the student: the tokenizer's EOS and its generation settings' ids."""
        return self.ends_of()

    def ends_of(self, *writers: LanguageModel) -> tuple[int, ...]:
        """Return, in ascending order, the ids that end a text of these writers, and those of the student."""
        return tuple(sorted({i for one in (self.student, *writers) for i in end_ids(self.tokenizer, one.model)}))

    @property
    def sharded(self) -> bool:
        """Return whether every rank has to take part when the student runs."""
        return self.student.shards is not None

    @property
    def named_teachers(self) -> dict[str, LanguageModel]:
        """Return all teachers with a model by name, `teacher` first where it is one."""
        return ({} if self.teacher is None else {TEACHER: self.teacher}) | dict(self.teachers)

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Return the names of all teachers, those without a model last."""
        return (*self.named_teachers, *self.tellers)

    @property
    def comparable(self) -> tuple[str, ...]:
        """Return the names of the teachers whose distributions over the student's ids are known for any text."""
        return tuple(name for name in self.named_teachers if name not in self.tokenizers)

    @property
    def frozen(self) -> list[LanguageModel]:
        """Return the models that are not trained: all teachers and the reference."""
        return [*self.named_teachers.values(), *([] if self.reference is None else [self.reference])]

    def required_teacher(self) -> LanguageModel:
        """Return the one teacher, `model.teacher`; raise `ConfigurationError` where the run has none of this name."""
        if TEACHER in self.tellers:
            return self.teacher_named(TEACHER)
        return required(TEACHER, self.teacher, self.teachers)

    def teacher_named(self, name: str) -> LanguageModel:
        """Return the teacher of a name; raise `ConfigurationError` where no teacher has it, or one without a model."""
        if name in self.tellers:
            raise ConfigurationError(
                f"The teacher `{name}` is a `{type(self.tellers[name]).__name__}`, of which no model is loaded, but "
                f"one is needed. Name a model in `{setting_of(name)}`."
            )
        if name == TEACHER:
            return self.required_teacher()
        if name not in self.teachers:
            raise ConfigurationError(
                f"There is no teacher `{name}`; the run has {listed(self.teacher_names)}. Name it in `model.teachers`."
            )
        return self.teachers[name]

    def taught_by(self, name: str) -> Models:
        """Return the same models with the teacher of a name as the one teacher; raise `ConfigurationError` where no
        teacher has it.
        """
        if name == TEACHER and set(self.teacher_names) <= {TEACHER}:
            return self
        teacher = None if name in self.tellers else self.teacher_named(name)
        known = {of: getattr(self, of) for of in ("tokenizers", "brought", "tellers")}
        own: dict[str, Any] = {of: {TEACHER: them[name]} if name in them else {} for of, them in known.items()}
        return replace(self, teacher=teacher, teachers={}, teacher_name=name, **own)

    def required_reference(self) -> LanguageModel:
        """Return the reference model; raise `ConfigurationError` where the run has none."""
        return required("reference", self.reference)

    def rolled_out(self, source: RolloutSource, prompts: PromptBatch, step: Step) -> Sequences:
        """Return what `source` writes for the prompts, for a source that builds on another.

        It is written once if the objective uses both.
        """
        done = self.rollouts.get(source)
        return done if done is not None and done.prompts is prompts else source(prompts, self, step)


@dataclass(frozen=True)
class Writing:
    """One way in which a source completes prompts.

    Args:
        writers: the models that write: `student`, a teacher by its name, or both; none where the completions are there
            already, as the references of a task are.
        sampling: how long the completions are and how many; None where no model writes.
        engine: what runs the model; None for the decode loop of the package.
        chooses: whether one completion of each prompt is given on, of those that are sampled.
        stored: what a stored teacher says of no tokens, [0], for the shape and temperature of its scores; None for a
            live teacher.
        beside: tokens that the writer reads beside the prompt, at most.
    """

    writers: tuple[str, ...] = ()
    sampling: Sampling | None = None
    engine: Engine | None = None
    chooses: bool = False
    stored: TopKScores | None = None
    beside: int = 0

    @property
    def kept(self) -> int:
        """Return how many completions of each prompt are given on."""
        return 1 if self.sampling is None or self.chooses else self.sampling.num_completions


class RolloutSource(Part, Remembers, ABC):
    """Who writes the completions.

    Attributes:
        stored_teacher: the completions bring a teacher's scores along, so no teacher is loaded.
        needs_rewards: the source asks for the task's rewards itself.
        brings_rewards: its completions have rewards, as those of an environment: the task needs no verifier for it.
    """

    stored_teacher = False
    needs_rewards = False
    brings_rewards: bool = False

    @abstractmethod
    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        """Complete the prompts. Collective where a writer is sharded: call it on every rank."""

    def with_tensors(self, number: Number, step: Step) -> RolloutSource:
        """Return the source itself: kernels read no source."""
        return self

    def before_loading(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look at what the source needs outside of this process; every rank does so once, before models are loaded.

        Raises:
            ConfigurationError: it is not there, or does not suit the run.
        """

    def delegates(self) -> tuple[RolloutSource, ...]:
        """Return the sources that write in its place, one or another of them; by default all that it was given."""
        return tuple(given(self, RolloutSource))  # type: ignore[type-abstract]

    def writings(self) -> tuple[Writing, ...]:
        """Return the ways in which the source may complete a batch; it takes one of them at a time.

        By default those of its delegates. Without any, the student writes where the source was given a `Sampling`, run
        by the `Engine` that it was given, and no model writes otherwise.
        """
        if delegates := self.delegates():
            return tuple(writing for source in delegates for writing in source.writings())
        sampling = next(given(self, Sampling), None)
        if sampling is None:
            return (Writing(),)
        engine = next(given(self, Engine), None)  # type: ignore[type-abstract]
        return (Writing(("student",), sampling, engine),)

    def token_distribution(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        """Return the distribution that the next token is drawn from, before temperature and truncation.

        By default that of the one model that writes; references count as written by the teacher.

        Args:
            student: [V] log-probabilities.
            teacher: [V] log-probabilities.
            step: where training stands.

        Returns:
            [V] log-probabilities.

        Raises:
            ConfigurationError: several write, and the class does not say by this method how they are mixed.
        """
        delegates = self.delegates()
        if len(delegates) == 1:
            return delegates[0].token_distribution(student, teacher, step)
        writers = {writing.writers or (TEACHER,) for writing in self.writings()}
        if len({role for roles in writers for role in roles}) > 1:
            raise ConfigurationError(
                f"`{type(self).__name__}` lets several models write, and does not say which distribution a token is "
                "drawn from. Its method `token_distribution` can say it."
            )
        return student if writers == {("student",)} else teacher


Rollouts = Mapping[RolloutSource, Sequences]


class Engine(Part, ABC):
    """What runs a model to sample from it.

    With `foreign` it computes otherwise than training does, so that its probabilities differ by more than rounding, and
    what it samples is marked with how much (`Sequences.engine_log_ratio`). With `couples_ranks` every rank has to call
    `generate` equally often, with or without prompts. With the law of splits, which a class may take back, a prompt has
    the same completions in any batch.
    """

    foreign = False
    couples_ranks = False
    laws = frozenset({Law.SPLIT_INVARIANT})

    def new_cache(self, model: LanguageModel) -> Any:
        """Return an empty cache of the kind that it fills as it samples, for plans of the memory.

        By default that of `generate` in transformers. None where an engine has set its memory aside, for weights and
        caches of its own.

        Raises:
            ConfigurationError: the engine cannot run the model.
        """
        from transformers import DynamicCache

        return DynamicCache(config=model.model.config)

    def fixes_cache(self, model: LanguageModel) -> bool:
        """Return whether, on a GPU, the cache has room for whole completions from the first token on, for plans.

        By default it grows with what is written.
        """
        return False

    def set_aside(self, memory: int, weights: int) -> tuple[int, int]:
        """Return what it takes of a training device for weights and caches of its own, for plans of the memory.

        By default nothing: it samples with the run's own weights, and `new_cache` comes and goes.

        Args:
            memory: bytes of the device.
            weights: bytes of the model that it runs, in the dtype that is computed in.

        Returns:
            The bytes while it samples, and those that it keeps in between.
        """
        return 0, 0

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
        """Write `sampling.num_completions` completions of every prompt, with the sampler's log-probabilities.

        The rows are in prompt order. Collective where the model is sharded: call it on every rank.
        """

    def session(self, model: LanguageModel, models: Models, *, on_policy: bool) -> Session:
        """Return calls for rows that grow turn by turn; here they are calls of `generate`, and as collective."""
        return Session(lambda *asked: self.generate(asked[0], model, asked[1], models, asked[2], on_policy=on_policy))
