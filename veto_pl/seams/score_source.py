"""The seam of teachers without a model here: what is known of them are scores of texts, on disk or from a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.seams.batches import Sequences
from veto_pl.seams.models import TeacherSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """What a teacher says of B rows.

    Args:
        scores: [B, T] of the tokens; arbitrary where no completion token stands, and in rows without an answer.
        unanswered: [B] bool, the rows that it has not answered; None where it has answered all.
    """

    scores: TopKScores
    unanswered: Tensor | None = None


class ScoreSource(TeacherSource, ABC):
    """What a teacher says of texts in the student's ids, of which no model is loaded.

    It tells its likeliest ids and the token that was written (`TopKScores`), of the plain text at one temperature.

    Attributes:
        knows_new_texts: it can say something of what a model has just written.
    """

    knows_new_texts = True

    @abstractmethod
    def __call__(self, sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> Answers:
        """Score the completions of B rows, perhaps none; any rank may ask by itself.

        Args:
            sequences: the rows.
            tokenizer: of their ids.

        Raises:
            DataError: nothing is known of a row, or nobody answers.
        """

    @abstractmethod
    def of_nothing(self) -> TopKScores:
        """Return what it says of no tokens, [0], for the shape and temperature of its scores."""

    def before_loading(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look at what it needs outside of this process; every rank does so once, before models are loaded.

        Raises:
            ConfigurationError: it is not there, or does not suit the run.
        """
