"""What the logged columns mean: order, titles and units."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Quantity:
    """A column of the metrics file, or a metric of an evaluation, as a reader sees it.

    Args:
        column: its name in the file.
        title: headline of its chart.
        unit: what its vertical axis counts.
        factor: turns a logged value into that unit.
        better: 1 where more is better (for a measure of diversity: more diverse), -1 where less is, 0 where neither is.
    """

    column: str
    title: str
    unit: str
    factor: float = 1.0
    better: int = 0

    @classmethod
    def of(cls, column: str) -> Quantity:
        """The known quantity of that column, or a description made from its name.

        >>> Quantity.of("train/kl").unit, Quantity.of("validation/self_bleu").title
        ('KL (nats/token)', 'Validation self-BLEU')
        >>> Quantity.of("sampled/pass@8").title, Quantity.of("sampled/pass@8").unit
        ('Pass@8, sampled', 'pass@8 (%)')
        """
        group, _, name = column.rpartition("/")
        if group == "train/seconds":
            return cls(column, f"Time for {name.replace('_', ' ')}", "time (s)")
        metric = _metric(name or column)
        words = metric.unit.partition(" (")[0] if metric.unit else name.replace("_", " ").strip() or column
        if group in _GROUPS:
            title = f"{_GROUPS[group]} {words}"
        else:
            title = f"{words[:1].upper()}{words[1:]}{f', {group}' if group else ''}"
        made = cls(column, title, metric.unit or words, metric.factor, metric.better)
        return replace(_KNOWN[column], better=made.better) if column in _KNOWN else made

    @property
    def group(self) -> str:
        """The evaluation, or `train` or `validation`."""
        return self.column.rpartition("/")[0]


@dataclass(frozen=True)
class _Metric:
    unit: str = ""
    factor: float = 1.0
    better: int = 0


def _metric(name: str) -> _Metric:
    """What is known of a metric by its name alone."""
    if match := _NUMBERED.fullmatch(name):
        pattern = _FAMILIES[match[1]]
        return replace(pattern, unit=pattern.unit.format(match[2], (match[3] or "").replace("_", ", ")))
    return _METRICS.get(name, _Metric())


_NUMBERED = re.compile(r"(pass@|distinct_|repetition_|vendi_|mean_ratio_|largest_ratio_)(\d+)((?:_low|_high|_\d+)?)")
_FAMILIES = {
    "pass@": _Metric("pass@{}{} (%)", 100.0, 1),
    "distinct_": _Metric("distinct-{0} (distinct / all {0}-grams)", better=1),
    "repetition_": _Metric("repetition-{0} (repeated / all {0}-grams)", better=-1),
    "vendi_": _Metric("Vendi score (completions, by {}-grams)", better=1),
    "mean_ratio_": _Metric("mean ratio of target to student (powers of ten)", better=-1),
    "largest_ratio_": _Metric("largest ratio of target to student (powers of ten)", better=-1),
}
_METRICS = {
    "accuracy": _Metric("accuracy (%)", 100.0, 1),
    "mean_reward": _Metric("mean reward", better=1),
    "win_rate": _Metric("win rate (%)", 100.0, 1),
    "majority_vote": _Metric("majority vote (%)", 100.0, 1),
    "distinct_correct": _Metric("distinct correct (%)", 100.0, 1),
    "rouge1": _Metric("ROUGE-1 (%)", 100.0, 1),
    "rouge2": _Metric("ROUGE-2 (%)", 100.0, 1),
    "rougeL": _Metric("ROUGE-L (%)", 100.0, 1),
    "bert_score": _Metric("BERTScore", better=1),
    "completion_entropy": _Metric("completion entropy (nats)", better=1),
    "sequence_logp": _Metric("sequence log-probability (nats)"),
    "calibration_error": _Metric("calibration error (per token)", better=-1),
    "sequence_calibration_error": _Metric("calibration error (per completion)", better=-1),
    "top_one_agreement": _Metric("top-1 agreement (%)", 100.0, 1),
    "self_bleu": _Metric("self-BLEU (0 to 100)", better=-1),
    "forward_kl": _Metric("forward KL (nats/token)", better=-1),
    "reverse_kl": _Metric("reverse KL (nats/token)", better=-1),
    "student_entropy": _Metric("student entropy (nats)"),
    "completion_length": _Metric("completion length (tokens)"),
    "eos_rate": _Metric("EOS rate (%)", 100.0),
}
_GROUPS = {"train": "Training", "validation": "Validation"}
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
