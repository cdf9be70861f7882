"""Metrics of how different completions are from each other, and of repetition inside of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.generations import Generations
from veto_pl.metrics.metric_bases import CompletionMetric


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
        self.name, self.unit = f"distinct_{n}", f"distinct / all {n}-grams"

    def update(self, generations: Generations) -> None:
        grams = [[gram for tokens in group for gram in _ngrams(tokens, self.n)] for group in _by_prompt(generations)]
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
        self.name, self.unit = f"repetition_{n}", f"repeated / all {n}-grams"

    def update(self, generations: Generations) -> None:
        self._add(1 - _distinct_fractions([_ngrams(tokens, self.n) for tokens in generations.tokens]))


class SelfBLEU(CompletionMetric):
    """BLEU (0 to 100) of each completion against the others of its prompt; the mean over completions.

    Prompts with a single completion count for nothing. sacrebleu computes the BLEU of the sentences; the time grows
    with the square of the completions per prompt.

    References:
        arXiv 1802.01886
    """

    name = "self_bleu"
    title = "self-BLEU"
    unit = "0 to 100"
    needs_group = True
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


class VendiScore(CompletionMetric):
    r"""How many different completions a prompt has, in effect: from 1, all alike, to K, nothing in common.

    .. math:: \exp\big({-\textstyle\sum_i} \lambda_i \ln \lambda_i\big)

    with the eigenvalues of :math:`M / K`, where :math:`M_{ij}` is the cosine of the n-gram counts of completions i and
    j of a prompt; the mean over prompts. A completion that is shorter than n counts as one n-gram.

    Args:
        n: length of the n-grams of token ids.

    Numerics: eigenvalues in float64; those below 0 count as 0.

    References:
        arXiv 2210.02410
    """

    title = "Vendi score"
    needs_group = True
    higher_is_better = True

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.n = _checked(n, "VendiScore")
        self.name, self.unit = f"vendi_{n}", f"completions, by {n}-grams"

    def update(self, generations: Generations) -> None:
        if not generations.tokens:
            return
        kernels = torch.stack([_cosines([_counts(ids, self.n) for ids in group]) for group in _by_prompt(generations)])
        weights = torch.linalg.eigvalsh(kernels / kernels.shape[1])
        self._add(torch.special.entr(weights.clamp_min(0)).sum(1).exp())


class CompletionEntropy(CompletionMetric):
    r"""Entropy of the completions that a prompt got, each distinct one an outcome, in nats; the mean over prompts.

    .. math:: -\sum_c f_c \ln f_c

    with the relative frequency of each completion, by its token ids: from 0, all the same, to :math:`\ln K`.
    """

    name = "completion_entropy"
    unit = "nats"
    needs_group = True
    higher_is_better = True

    def update(self, generations: Generations) -> None:
        counts = [Counter(map(tuple, group)).values() for group in _by_prompt(generations)]
        shares = [torch.tensor(list(found), dtype=torch.float64) / sum(found) for found in counts]
        self._add(torch.tensor([float(torch.special.entr(share).sum()) for share in shares], dtype=torch.float64))


def _by_prompt(generations: Generations) -> list[list[list[int]]]:
    """Return the ids of the completions of each prompt."""
    size = generations.rewards.shape[1]
    return [generations.tokens[i : i + size] for i in range(0, len(generations.tokens), size)]


def _counts(tokens: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(_ngrams(tokens, n) or [tuple(tokens)])


def _cosines(counts: Sequence[Counter[tuple[int, ...]]]) -> Tensor:
    """[K, K] float64."""
    place = {gram: i for i, gram in enumerate(dict.fromkeys(gram for found in counts for gram in found))}
    vectors = torch.zeros(len(counts), len(place), dtype=torch.float64)
    for row, found in enumerate(counts):
        vectors[row, [place[gram] for gram in found]] = torch.tensor(list(found.values()), dtype=torch.float64)
    vectors /= vectors.norm(dim=1, keepdim=True)
    return vectors @ vectors.T


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _distinct_fractions(grams: Sequence[Sequence[tuple[int, ...]]]) -> Tensor:
    return torch.tensor([len(set(listed)) / len(listed) for listed in grams if listed], dtype=torch.float64)


def _checked(n: int, name: str) -> int:
    if n < 1:
        raise ConfigurationError(f"`{name}.n` must be at least 1, got {n}.")
    return n
