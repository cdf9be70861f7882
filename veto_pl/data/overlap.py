"""ROUGE: how many words a text shares with references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

RougeKind = Literal["rouge1", "rouge2", "rougeL"]


def rouge(text: str, references: Sequence[str], kind: RougeKind = "rougeL") -> float:
    """Compute the F measure of ROUGE against the best reference, in [0, 1]; 0 without a reference.

    Words are runs of ASCII letters and digits in lower case, without stemming. torchmetrics counts; the time is the
    product of the two lengths for `rougeL`, and linear for the others.

    Args:
        text: the text to score.
        references: each as good as the other.
        kind: single words, pairs of words, or the longest common subsequence.

    Example:
        >>> round(rouge("the cat sat", ["a dog stood", "The cat sat down."]), 3)
        0.857
    """
    from torchmetrics.functional.text.rouge import rouge_score

    if not references:
        return 0.0
    scores = rouge_score([text], [list(references)], accumulate="best", rouge_keys=kind)
    return float(scores[f"{kind}_fmeasure"])
