"""The seams: the abstract base classes that an algorithm is composed of. Read this file first.

An implementation is a frozen dataclass. Its fields are its YAML, its docstring is its `--help`, and a class that has
been imported can be named in a config. Tensors follow one order, `(student_logp, target_logp)`, and the legend of
`veto_pl.types`. Implementations never mask, reduce or detach: the objective that composes them does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from veto_pl.functional.differentiation import by_autograd
from veto_pl.laws import Law as Law
from veto_pl.types import Example, LossOutput, Models, PromptBatch, Rollouts, Sequences, Step

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from veto_pl.memory import Memory
    from veto_pl.models.causal_lm import CausalLM
    from veto_pl.models.weights import StoredWeights
    from veto_pl.rollouts.sampling import Sampling
    from veto_pl.tokens import TokenGrid, TokenRows


class Schedule(ABC):
    """A number that changes over the run."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float:
        """The value after `step` of `total` optimizer steps."""


class RolloutSource(ABC):
    """Who writes the completions. With `stored_teacher` they bring the teacher's scores along, so none is loaded."""

    stored_teacher: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        """Completes the prompts."""

    def new_memory(self) -> Memory | None:
        """What is remembered from step to step, as a run begins; the call finds it by `models.memories.of(self)`."""
        return None


class Engine(ABC):
    """What runs a model to sample from it."""

    @abstractmethod
    def generate(
        self, prompts: PromptBatch, model: CausalLM, sampling: Sampling, models: Models, step: Step, *, on_policy: bool
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


class Support(ABC):
    """The outcomes that student and teacher are compared on."""

    @abstractmethod
    def __call__(self, student_logp: Tensor, teacher_logp: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [N, V] and [N, V] to [N, K] and [N, K], both normalised."""


class Target(ABC):
    """The distribution that the student is drawn to."""

    laws: ClassVar[frozenset[Law]] = frozenset({Law.NORMALISED, Law.PERMUTATION_INVARIANT})

    @abstractmethod
    def __call__(self, teacher_logp: Tensor, student_logp: Tensor, step: Step) -> Tensor:
        """Normalised log-probabilities [N, K]."""


class Divergence(ABC):
    """A dissimilarity of two distributions."""

    laws: ClassVar[frozenset[Law]] = frozenset({Law.ZERO_AT_EQUALITY, Law.NON_NEGATIVE, Law.PERMUTATION_INVARIANT})

    @abstractmethod
    def __call__(self, student_logp: Tensor, target_logp: Tensor) -> Tensor:
        """Maps [N, K] and [N, K] to [N]."""

    def with_gradient(self, student_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        """The value [N], and its gradient [N, K] in the student's logits. Autograd's; override with a closed form."""
        return by_autograd(self)(student_logp, target_logp)


class TokenWeighting(ABC):
    """How much each token counts; the denominator stays the number of tokens."""

    @abstractmethod
    def __call__(self, rows: TokenRows) -> Tensor:
        """[N] weights of a chunk of tokens."""


class Advantage(ABC):
    """The credit of each sampled token in a policy-gradient term."""

    needs_reference: ClassVar[bool] = False
    needs_rewards: ClassVar[bool] = False
    compares_completions: ClassVar[bool] = False

    @property
    def laws(self) -> frozenset[Law]:
        """What holds for an objective with this advantage; an advantage that couples rows promises nothing."""
        return frozenset({Law.SPLIT_INVARIANT})

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        """[n] numbers that need the distributions of a few tokens; the call finds them as [B, S] in `grid.scores`."""
        return {}

    @abstractmethod
    def __call__(self, grid: TokenGrid) -> Tensor:
        """[B, S]; the values where `grid.mask` is False are ignored."""


class Objective(ABC):
    """Which tokens to train on, and the loss."""

    needs_teacher: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    needs_rewards: ClassVar[bool] = False
    compares_completions: ClassVar[bool] = False
    laws: frozenset[Law] = frozenset({Law.SPLIT_INVARIANT})

    @property
    @abstractmethod
    def sources(self) -> tuple[RolloutSource, ...]:
        """The rollouts that the loss reads. Equal sources are rolled out once and shared, in this order."""

    def active(self, step: Step) -> Objective:
        """What is trained on at this step: itself, unless the objective has phases."""
        return self

    @abstractmethod
    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Undivided loss terms and metrics of one micro-batch."""


class Reward(ABC):
    """A verifier: how good a completion is."""

    @abstractmethod
    def __call__(self, example: Example, completion: str) -> float:
        """A score; 1.0 and only 1.0 means correct. Never raises on any text."""

    def batch(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the score of each pair; override where judging many at once is faster."""
        return [self(example, text) for example, text in zip(examples, completions, strict=True)]


class Template(ABC):
    """How an example becomes the text that the models read."""

    @abstractmethod
    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """The prompt's text, ready to be tokenised without special tokens being added."""

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The Jinja chat template that makes this text of a user's message, for exports; None for no template."""
        return None


class Task(ABC):
    """Rows to learn from, and how a completion of a row is judged."""

    @abstractmethod
    def load(self, split: str) -> Iterable[Example]:
        """The rows of `split`, `train`, `validation` or `test`: a sequence, or for training a stream without length."""

    @abstractmethod
    def reward(self, example: Example, completion: str) -> float:
        """A score; 1.0 and only 1.0 means correct."""

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """The score of each pair; override where judging many at once is faster."""
        return [self.reward(example, text) for example, text in zip(examples, completions, strict=True)]

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a completion of this task, beside those of `Sampling.stop`."""
        return ()


class Judge(ABC):
    """Which of two answers is better."""

    @abstractmethod
    def __call__(self, example: Example, first: str, second: str) -> float:
        """1.0 where the first is better, 0.0 where the second is, 0.5 for a tie; else raises `NoVerdictError`."""


class ModelSource(ABC):
    """Where a causal language model comes from."""

    moves = False  # jsonargparse would look for the name `ClassVar` where subclasses live

    @abstractmethod
    def config(self) -> PretrainedConfig:
        """The architecture, without weights."""

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """The model with its weights."""

    def skeleton(self) -> PreTrainedModel:
        """The architecture with arbitrary weights; on the meta device it costs no memory."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(self.config())

    def stored(self) -> StoredWeights | None:
        """The weights as they are stored, to be read in parts; None where the model has to be made whole first."""
        return None

    def follow(self, teacher: CausalLM, student: CausalLM, step: Step) -> None:  # noqa: B027
        """Moves a teacher of this source after an optimizer step. With `moves`, it is saved in checkpoints."""

    @property
    def tokenizer_source(self) -> Mapping[str, Any] | None:
        """Keyword arguments for `AutoTokenizer.from_pretrained`, or None where the source has no tokenizer."""
        return None


class TokenizerSource(ABC):
    """Where a tokenizer comes from, when it is not the student's own."""

    @abstractmethod
    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
