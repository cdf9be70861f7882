"""The seams of data: rows of a task, how they become prompts, and how completions are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from veto_pl.core.laws import Law
from veto_pl.core.part import Part
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams.conversation import Conversation, Rendering
from veto_pl.seams.dialogue import Dialogue
from veto_pl.seams.image_files import Picture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One row of a task: the text before templating, its references if there are any, and the raw row.

    Args:
        prompt: the text before templating.
        completion: the reference that is trained on.
        row: the row as the task read it.
        alternatives: references that are as good as `completion`, for judging.
        conversation: where the row is one; `prompt` is then the user's last message in front of the first reference,
            and `completion` the last reference.
        source: the data set that the row comes from, where several are mixed.
        teacher: the name of the teacher that the row asks for; empty where it names none.
        images: of the row, in the order in which the prompt shows them; whatever `Picture.of` takes becomes a picture.
    """

    prompt: str
    completion: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    conversation: Conversation | None = None
    source: str = ""
    teacher: str = ""
    images: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.images:
            object.__setattr__(self, "images", tuple(map(Picture.of, self.images)))

    @property
    def references(self) -> tuple[str, ...]:
        """Return all references: `completion` first, then the alternatives."""
        return self.alternatives if self.completion is None else (self.completion, *self.alternatives)


class Reward(Part, ABC):
    """A verifier: how good a completion is.

    Attributes:
        judges: it tells completions apart; False where it says the same of all.
    """

    laws = frozenset({Law.REFERENCE_IS_BEST})
    judges = True

    @abstractmethod
    def __call__(self, example: Example, completion: str) -> float:
        """Return a score; 1.0 and only 1.0 means correct. An implementation must not raise on any text."""

    def batch(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the score of each pair; override where judging many at once is faster."""
        return [self(example, text) for example, text in zip(examples, completions, strict=True)]


class Template(Part, ABC):
    """How an example becomes the text that the models read."""

    laws = frozenset({Law.PROMPT_IS_SHOWN})

    @abstractmethod
    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the prompt's text, ready to be tokenised without special tokens being added."""

    def rendered(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendering:
        """Return the text of a conversation that has references; the tokens of a row are those of this text.

        A template of single prompts does not override it.

        Raises:
            ConfigurationError: it shows single prompts.
        """
        raise ConfigurationError(
            f"`{type(self).__name__}` shows single prompts, but the rows are conversations. Set `data.template` to "
            "`ChatTemplate`."
        )

    @property
    def renders_conversations(self) -> bool:
        """Whether it shows conversations of several turns."""
        return type(self).rendered is not Template.rendered

    def dialogue(
        self,
        example: Example,
        tokenizer: PreTrainedTokenizerBase,
        tools: tuple[Mapping[str, Any], ...] = (),
        ends: Collection[int] = (),
    ) -> Dialogue:
        """Return the dialogue of an agent about a row; a template of single turns does not override it.

        Args:
            example: the row.
            tokenizer: of the models.
            tools: JSON schemas of the tools that the agent may call.
            ends: the ids that end a turn of the agent.

        Raises:
            ConfigurationError: it shows single turns, or no tools.
        """
        raise ConfigurationError(
            f"`{type(self).__name__}` shows no dialogues with an environment. Set `data.template` to `ChatTemplate`, "
            "or to `PlainTemplate` for plain text."
        )

    @property
    def shows_dialogues(self) -> bool:
        """Whether it shows dialogues with an environment."""
        return type(self).dialogue is not Template.dialogue

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the Jinja chat template that makes this text of a user's message, for exports; None for none."""
        return None


class Task(Part, ABC):
    """Rows to learn from, and how a completion of a row is judged."""

    laws = frozenset({Law.REFERENCE_IS_BEST, Law.SPLITS_ARE_APART})

    @abstractmethod
    def load(self, split: str) -> Iterable[Example]:
        """Return the rows of `split`, which is `train`, `validation` or `test`.

        It is a sequence, or for training a stream without length.
        """

    @abstractmethod
    def reward(self, example: Example, completion: str) -> float:
        """Return the score of a completion; 1.0 and only 1.0 means correct."""

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the score of each pair; override it where judging many at once is faster."""
        return [self.reward(example, text) for example, text in zip(examples, completions, strict=True)]

    @property
    def stop(self) -> tuple[str, ...]:
        """Return the strings that end a completion of this task, beside those of `Sampling.stop`."""
        return ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of its data sets (`Example.source`), which are then also measured one by one."""
        return ()

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the names of teachers that its rows ask for (`Example.teacher`), where the settings tell them."""
        return ()

    @property
    def judges(self) -> bool:
        """Whether it tells completions apart; False where its rewards say nothing."""
        return True

    def shown_by(self, template: Template) -> Template:
        """Return the template of its rows, given that of the run."""
        return template


class Judge(Part, ABC):
    """Which of two answers is better."""

    laws = frozenset({Law.ORDER_IS_IGNORED})

    @abstractmethod
    def __call__(self, example: Example, first: str, second: str) -> float:
        """Return 1.0 where the first answer is better, 0.0 where the second is, and 0.5 for a tie.

        Without a verdict, `NoVerdictError` is raised.
        """
