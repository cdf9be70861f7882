"""What it costs to keep k ids and one outcome for all others, instead of every id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from pydantic import ConfigDict
from rich.table import Table
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.functional.supports import top_k_with_tail

NOTHING_ELSE = ConfigDict(extra="forbid")
"""Where these are read from a file, their fields are all that may stand there."""


@dataclass(frozen=True)
class TruncationCost:
    """Sums over tokens, so that batches and shards add up. The student is the one of the config, before training.

    Args:
        tokens: how many tokens were measured.
        tail_mass: probability of the ids that were not kept.
        largest_tail_mass: of a single token.
        entropy: of the teacher over every id.
        kept_entropy: of the teacher over k + 1 outcomes.
        forward_kl: KL(teacher || student) over every id.
        kept_forward_kl: over k + 1 outcomes.
        reverse_kl: KL(student || teacher) over every id.
        kept_reverse_kl: over k + 1 outcomes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = NOTHING_ELSE
    tokens: int = 0
    tail_mass: float = 0.0
    largest_tail_mass: float = 0.0
    entropy: float = 0.0
    kept_entropy: float = 0.0
    forward_kl: float = 0.0
    kept_forward_kl: float = 0.0
    reverse_kl: float = 0.0
    kept_reverse_kl: float = 0.0

    def __add__(self, other: TruncationCost) -> TruncationCost:
        ours, theirs = asdict(self), asdict(other)
        sums = {name: ours[name] + theirs[name] for name in ours}
        return TruncationCost(**sums | {"largest_tail_mass": max(self.largest_tail_mass, other.largest_tail_mass)})

    @staticmethod
    def total(parts: Iterable[TruncationCost]) -> TruncationCost:
        """Return the sum of any number of parts."""
        return sum(parts, TruncationCost())

    @staticmethod
    def measure(student_logp: Tensor, teacher_logp: Tensor, kept: TopKScores) -> TruncationCost:
        """Compare full rows with truncated ones.

        Args:
            student_logp: [n, V] log-probabilities, at the loss's temperature.
            teacher_logp: [n, V] of the teacher.
            kept: [n] what is kept of the teacher.

        Numerics: summed in float64.
        """
        student, teacher = top_k_with_tail(student_logp, kept.ids), kept.logp
        tail = teacher[:, -1].exp()
        values = {
            "tail_mass": tail,
            "entropy": entropy(teacher_logp),
            "kept_entropy": entropy(teacher),
            "forward_kl": forward_kl(student_logp, teacher_logp),
            "kept_forward_kl": forward_kl(student, teacher),
            "reverse_kl": reverse_kl(student_logp, teacher_logp),
            "kept_reverse_kl": reverse_kl(student, teacher),
        }
        sums = {name: float(value.double().sum()) for name, value in values.items()}
        return TruncationCost(tokens=len(tail), largest_tail_mass=max(tail.tolist(), default=0.0), **sums)

    def means(self) -> dict[str, float]:
        """Return the figures per token; the number of tokens and the largest tail are not divided."""
        whole = {"tokens": self.tokens, "largest_tail_mass": self.largest_tail_mass}
        names = [field.name for field in fields(self) if field.name not in whole]
        return whole | {name: getattr(self, name) / max(self.tokens, 1) for name in names}


def cost_table(means: Mapping[str, float], k: int) -> Table:
    """Return the figures of `TruncationCost.means` as a table for the terminal."""
    table = Table("per token", "every id", f"{k} ids + tail", "kept", title="what the truncation costs")
    table.title_justify = "left"
    titles = {
        "entropy": "teacher's entropy (nats)",
        "forward_kl": "KL(teacher || student) (nats)",
        "reverse_kl": "KL(student || teacher) (nats)",
    }
    for name, title in titles.items():
        exact, kept = means[name], means[f"kept_{name}"]
        table.add_row(title, f"{exact:.4f}", f"{kept:.4f}", f"{kept / exact:.2%}" if exact > 0 else "-")
    table.add_row("tail mass, mean", "", f"{means['tail_mass']:.2e}", "")
    table.add_row("tail mass, largest", "", f"{means['largest_tail_mass']:.2e}", "")
    return table
