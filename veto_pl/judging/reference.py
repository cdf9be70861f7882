"""A judge that reads nothing but the references."""

from dataclasses import dataclass

from veto_pl.core.bounds import BelowOne
from veto_pl.data.overlap import RougeKind, rouge
from veto_pl.judging.preferences import NO_REFERENCE, NoVerdictError
from veto_pl.seams import Example, Judge


@dataclass(frozen=True, kw_only=True)
class ReferenceJudge(Judge):
    """Prefers the answer that is nearer to the references by ROUGE.

    It is free and deterministic, and blind to everything that other words could say as well: use it to try a set-up out
    and as a floor, not as the last word.

    Args:
        kind: `rouge1`, `rouge2` or `rougeL`.
        margin: answers whose F measures differ by no more than this tie.

    Raises:
        ConfigurationError: the margin is not in [0, 1).
        NoVerdictError: the row has no reference.

    Example:
        >>> ReferenceJudge()(Example("...", "The cat sat down."), "the cat sat", "a dog barked")
        1.0
    """

    kind: RougeKind = "rougeL"
    margin: BelowOne = 0.0

    def __call__(self, example: Example, first: str, second: str) -> float:
        """Return 1.0 if the first answer is nearer to the references, 0.0 if the second is, 0.5 for a tie."""
        if not example.references:
            raise NoVerdictError(NO_REFERENCE)
        lead = rouge(first, example.references, self.kind) - rouge(second, example.references, self.kind)
        return 0.5 if abs(lead) <= self.margin else float(lead > 0)
