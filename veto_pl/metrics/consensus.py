"""Metrics of the answers that the completions of a prompt give, and of how many of them are right."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict

import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric


class _AnswerMetric(CompletionMetric):
    """Base of the metrics that look at the answer that each completion of a prompt gives."""

    needs_group = True
    unit = "%"
    higher_is_better = True

    def __init__(self, pattern: str | None = None) -> None:
        super().__init__()
        try:
            self.pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            name = type(self).__name__
            raise ConfigurationError(f"`{name}.pattern` must be a regular expression: {error}.") from error

    def update(self, generations: Generations) -> None:
        values = [
            self._value([self._answer(text) for text in texts], rewards)
            for texts, rewards in zip(generations.groups(), generations.rewards.tolist(), strict=True)
        ]
        self._add(torch.tensor(values, dtype=torch.float64))

    @abstractmethod
    def _value(self, answers: list[str | None], rewards: list[float]) -> float:
        """Return the value of one prompt; None stands for a completion in which no answer is found."""

    def _answer(self, text: str) -> str | None:
        if self.pattern is None:
            return _collapse_spaces(text)
        found = list(self.pattern.finditer(text))
        return _collapse_spaces(found[-1][self.pattern.groups] or "") if found else None


class DistinctCorrect(_AnswerMetric):
    """Different answers of the correct completions over all completions of a prompt; the mean over prompts.

    The value is at most pass@1, and equals it where no two correct completions give the same answer.

    Args:
        pattern: a regular expression whose last match is the answer of a completion, by its last group where it has
            groups; completions without a match do not count. By default the whole completion is its answer. White space
            does not matter.

    Raises:
        ConfigurationError: the pattern is no regular expression.
    """

    name = "distinct_correct"

    def _value(self, answers: list[str | None], rewards: list[float]) -> float:
        right = {answer for answer, reward in zip(answers, rewards, strict=True) if reward == 1.0}
        return len(right - {None}) / len(answers)


class MajorityVote(_AnswerMetric):
    """The probability that the answer that most completions of a prompt give is correct; the mean over prompts.

    This is maj@k for all k completions. Among answers with equally many votes one is drawn, so the value of a prompt is
    the mean of theirs; where completions of one answer are judged differently, it is their mean.

    Args:
        pattern: a regular expression whose last match is the answer of a completion, by its last group where it has
            groups; completions without a match do not vote. By default the whole completion is its answer. White space
            does not matter.

    Raises:
        ConfigurationError: the pattern is no regular expression.

    References:
        arXiv 2203.11171
    """

    name = "majority_vote"

    def _value(self, answers: list[str | None], rewards: list[float]) -> float:
        votes: dict[str, list[bool]] = defaultdict(list)
        for answer, reward in zip(answers, rewards, strict=True):
            if answer is not None:
                votes[answer].append(reward == 1.0)
        most = max(map(len, votes.values()), default=0)
        leading = [sum(judged) / most for judged in votes.values() if len(judged) == most]
        return sum(leading) / len(leading) if leading else 0.0


def _collapse_spaces(text: str) -> str:
    return " ".join(text.split())
