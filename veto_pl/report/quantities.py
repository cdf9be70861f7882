"""What the logged columns mean: order, titles and units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A column of the metrics file as a reader sees it.

    Args:
        column: its name in the file.
        title: headline of its chart.
        unit: what its vertical axis counts.
        factor: turns a logged value into that unit.
    """

    column: str
    title: str
    unit: str
    factor: float = 1.0

    @classmethod
    def of(cls, column: str) -> Quantity:
        """The known quantity of that column, or a description made from its name.

        >>> Quantity.of("train/kl").unit, Quantity.of("validation/self_bleu").title
        ('KL (nats/token)', 'Validation self bleu')
        """
        group, _, name = column.rpartition("/")
        words = name.replace("_", " ").strip() or column
        title = " ".join(part for part in (_GROUPS.get(group, group), words) if part)
        return _KNOWN.get(column, cls(column, title[:1].upper() + title[1:], words))


_GROUPS = {"train": "training", "validation": "validation"}
_QUANTITIES = (
    Quantity("train/loss", "Training loss", "loss (nats/token)"),
    Quantity("train/kl", "KL to the teacher", "KL (nats/token)"),
    Quantity("train/entropy", "Student entropy in training", "entropy (nats)"),
    Quantity("train/beta", "Schedule of β", "β"),
    Quantity("train/grad_norm", "Gradient norm", "L2 norm before clipping"),
    Quantity("train/tokens_per_second", "Throughput", "tokens/s"),
    Quantity("train/learning_rate", "Learning rate", "learning rate"),
    Quantity("validation/accuracy", "Validation accuracy", "accuracy (%)", 100.0),
    Quantity("validation/mean_reward", "Validation reward", "mean reward"),
    Quantity("validation/forward_kl", "Forward KL in validation", "forward KL (nats/token)"),
    Quantity("validation/reverse_kl", "Reverse KL in validation", "reverse KL (nats/token)"),
    Quantity("validation/student_entropy", "Student entropy in validation", "entropy (nats)"),
    Quantity("validation/distinct_2", "Diversity", "distinct bigrams / bigrams"),
    Quantity("validation/completion_length", "Completion length", "length (tokens)"),
    Quantity("validation/eos_rate", "Completions that end by themselves", "EOS rate (%)", 100.0),
    Quantity("train/seconds", "Training time", "training time (s)"),
)
_KNOWN = {quantity.column: quantity for quantity in _QUANTITIES}


def in_order(columns: Iterable[str]) -> list[Quantity]:
    """Known quantities first, in their fixed order, then the others by name; each once."""
    given = set(columns)
    known = [quantity for quantity in _QUANTITIES if quantity.column in given]
    return known + [Quantity.of(column) for column in sorted(given - _KNOWN.keys())]
