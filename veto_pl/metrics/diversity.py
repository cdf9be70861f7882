"""How different completions are from each other, and from themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.generations import Generations
from veto_pl.metrics.base import CompletionMetric


class DistinctN(CompletionMetric):
    """Distinct n-grams of token ids over all n-grams, within the completions of a prompt; the mean over prompts.

    Prompts without an n-gram count for nothing.

    Args:
        n: length of the n-grams.

    References:
        arXiv 1510.03055
    """

    higher_is_better = True

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.n = _checked(n, "DistinctN")
        self.name = f"distinct_{n}"

    def update(self, generations: Generations) -> None:
        size = generations.rewards.shape[1]
        groups = [generations.tokens[i : i + size] for i in range(0, len(generations.tokens), size)]
        grams = [[gram for tokens in group for gram in _ngrams(tokens, self.n)] for group in groups]
        self._add(_distinct_fractions(grams))


class RepetitionRate(CompletionMetric):
    """One minus the distinct fraction of n-grams inside a completion; the mean over completions that have any.

    Args:
        n: length of the n-grams.

    References:
        arXiv 1908.04319
    """

    higher_is_better = False

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.n = _checked(n, "RepetitionRate")
        self.name = f"repetition_{n}"

    def update(self, generations: Generations) -> None:
        self._add(1 - _distinct_fractions([_ngrams(tokens, self.n) for tokens in generations.tokens]))


class SelfBLEU(CompletionMetric):
    """BLEU (0 to 100) of each completion against the others of its prompt; the mean over completions.

    Prompts with a single completion count for nothing. sacrebleu computes the BLEU of the sentences.

    References:
        arXiv 1802.01886
    """

    name = "self_bleu"
    higher_is_better = False

    def update(self, generations: Generations) -> None:
        from sacrebleu.metrics import BLEU

        bleu = BLEU(effective_order=True)
        scores = [
            bleu.sentence_score(text, group[:i] + group[i + 1 :]).score
            for group in generations.groups()
            if len(group) > 1
            for i, text in enumerate(group)
        ]
        self._add(torch.tensor(scores, dtype=torch.float64))


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _distinct_fractions(grams: Sequence[Sequence[tuple[int, ...]]]) -> torch.Tensor:
    return torch.tensor([len(set(listed)) / len(listed) for listed in grams if listed], dtype=torch.float64)


def _checked(n: int, name: str) -> int:
    if n < 1:
        raise ConfigurationError(f"`{name}.n` must be at least 1, got {n}.")
    return n
