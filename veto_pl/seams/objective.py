"""The seam of objectives: which tokens to train on, and the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veto_pl.core.laws import Law
from veto_pl.core.nested import given, walk
from veto_pl.core.part import Part
from veto_pl.core.scores import TopKScores
from veto_pl.core.step import Step
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.stat import Stat
from veto_pl.seams.batches import Sequences
from veto_pl.seams.panel import Panel
from veto_pl.seams.rollouts import Models, Rollouts, RolloutSource, Writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
class TokenValues:
    """Numbers of each completion token of a batch, without graph, row by row.

    Args:
        sequences: B rows with N completion tokens that count.
        values: [N] by name: `student_logp` and `teacher_logp` of the token, and what else is known, such as `kl`.
    """

    sequences: Sequences
    values: Mapping[str, Tensor]

    @property
    def ids(self) -> Tensor:
        """Return the tokens, [N] int64."""
        return self.sequences.token_ids()

    @property
    def rows(self) -> Tensor:
        """Return the row of each token, [N] int64."""
        return self.sequences.tokens()[1]


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns.

    Args:
        terms: undivided losses, each with its own denominator.
        metrics: undivided numbers to log beside them.
        faults: the rows of each rollout that cannot be trained on, as far as the objective knows; they are reported.
        tokens: by term, what was found at each token; a callback may ask for it.
    """

    terms: Mapping[str, Stat]
    metrics: Mapping[str, Stat] = field(default_factory=dict)
    faults: Mapping[RolloutSource, Faults] = field(default_factory=dict)
    tokens: Mapping[str, TokenValues] = field(default_factory=dict)


class AnyObjective(Part, ABC):
    """What is trained on, and the loss, whatever a student produces: `Objective` of texts, others of other things.

    The training loop, sums and phases know no more of an objective than this.

    Attributes:
        needs_teacher: `model.teacher` has to be set.
        needs_reference: `model.reference`, a further frozen model, has to be set.
        needs_rewards: the task scores each rollout before `loss` is called.
        aligns_tokenizers: it reads a teacher whose tokenizer differs (`Models.teacher_tokenizer`).
        aligns_named: it does so for every teacher of its panel, not for `model.teacher` alone.
        laws: what the conformance suite holds the class to.
    """

    needs_teacher = True
    needs_reference = False
    needs_rewards = False
    aligns_tokenizers = False
    aligns_named = False
    laws = frozenset({Law.SPLIT_INVARIANT})

    @property
    @abstractmethod
    def sources(self) -> tuple[Any, ...]:
        """Return the rollouts that the loss reads.

        Equal sources are rolled out once and shared, in this order.
        """

    def active(self, step: Step) -> Any:
        """Return the objective that is trained on at this step: itself, unless it has phases."""
        return self

    @abstractmethod
    def loss(self, rollouts: Any, models: Any, step: Step) -> LossOutput:
        """Compute the undivided loss terms and metrics of one micro-batch."""


class Objective(AnyObjective):
    """Which tokens to train on, and the loss.

    Attributes:
        compares_completions: a prompt with a single completion teaches nothing; a run without others is warned of.
    """

    compares_completions = False

    @property
    @abstractmethod
    def sources(self) -> tuple[RolloutSource, ...]:
        """Return the rollouts that the loss reads.

        Equal sources are rolled out once and shared, in this order.
        """

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Return the panels that it and the objectives inside of it ask, as far as these need a teacher, each once."""
        parts = (part for _, part in walk(self, derived=True) if isinstance(part, Objective) and part.needs_teacher)
        panels = [panel for part in parts for panel in given(part, Panel)]  # type: ignore[type-abstract]
        return tuple(panel for place, panel in enumerate(panels) if panel not in panels[:place])

    @property
    def rewarded_sources(self) -> tuple[RolloutSource, ...]:
        """Return the sources whose completions it, or an objective inside of it, learns from the rewards of."""
        parts = [part for _, part in walk(self, derived=True) if isinstance(part, Objective) and part.needs_rewards]
        alone = [part for part in parts if next(given(part, Objective), None) is None]  # type: ignore[type-abstract]
        found = tuple(dict.fromkeys(source for part in alone for source in part.sources))
        return found or (self.sources if self.needs_rewards else ())

    def writings(self, named: Sequence[str]) -> tuple[Writing, ...]:
        """Return all ways in which models write for it: completions, and what teachers say before they read.

        Args:
            named: the names of the run's teachers.
        """
        completions = (writing for source in self.sources for writing in source.writings())
        return (*completions, *(writing for panel in self.panels for writing in panel.writings(named)))

    def before_loading(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let every source, at any depth, look at what it needs outside of this process."""
        parts = (part for _, part in walk(self, derived=True))
        for source in dict.fromkeys(part for part in parts if isinstance(part, RolloutSource)):
            source.before_loading(tokenizer)

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Raise `ConfigurationError` where a teacher that tells its likeliest ids alone is not enough; by default so.

        Args:
            scores: what the teacher says of no tokens, [0]; None where that is not known yet.
            teacher: what brings the scores, as the message calls it.
        """
        raise ConfigurationError(
            f"`{type(self).__name__}` reads a model, but {teacher} is a stored or served teacher. Use a live teacher."
        )

    def active(self, step: Step) -> Objective:
        return self

    @abstractmethod
    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Compute the undivided loss terms and metrics of one micro-batch."""


def all_align(parts: Iterable[AnyObjective]) -> bool:
    """Return whether all objectives that read a teacher align its tokenizer, and one of them reads one."""
    readers = [part for part in parts if part.needs_teacher]
    return bool(readers) and all(part.aligns_tokenizers for part in readers)
