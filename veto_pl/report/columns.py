"""What logged columns mean: titles, units and directions, as the run's own metrics say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Shown(BaseModel):
    """How a metric is shown, as its class says.

    Args:
        title: what it is called.
        unit: of its values; `%` for a share, which is shown times 100.
        higher_is_better: None where neither is.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    title: str
    unit: str = ""
    higher_is_better: bool | None = None


# What the module logs of training, in the order of the charts.
_TRAINED = {
    "loss": Shown(title="loss", unit="nats/token"),
    "kl": Shown(title="KL to the teacher", unit="nats/token"),
    "entropy": Shown(title="student entropy", unit="nats"),
    "beta": Shown(title="schedule of β"),
    "grad_norm": Shown(title="gradient norm", unit="L2, before clipping"),
    "share": Shown(title="share of the tokens", unit="%"),
    "unread": Shown(title="tokens that no teacher reads", unit="%"),
    "turns": Shown(title="turns of an episode"),
    "failed_turns": Shown(title="turns that failed", unit="%"),
    "late_turns": Shown(title="turns without a reply in time", unit="%"),
    "played_turns": Shown(title="turns of a step"),
    "tokens_per_second": Shown(title="throughput", unit="tokens/s"),
    "learning_rate": Shown(title="learning rate"),
    "seconds": Shown(title="time", unit="s"),
}
_GROUPS = {"train": "Training", "validation": "Validation"}


@dataclass(frozen=True)
class Quantity:
    """A column of the metrics file, or a metric of an evaluation, as a reader sees it.

    Args:
        column: its name in the file, such as `validation/accuracy`.
        title: headline of its chart.
        label: what its axis counts, with the unit.
        factor: turns a logged value into that unit.
        better: 1 where more is better (for a measure of diversity: more diverse), -1 where less is, 0 where neither is.
    """

    column: str
    title: str
    label: str
    factor: float = 1.0
    better: int = 0

    @classmethod
    def of(cls, column: str, shown: Mapping[str, Shown] | None = None) -> Quantity:
        """Return the title, unit and direction of a column, as its metric says, or else made from its name.

        A run may tell of what it logs in training by `train/NAME`.

        >>> Quantity.of("train/kl").label, Quantity.of("validation/f1_score").title
        ('KL to the teacher (nats/token)', 'Validation: f1 score')
        >>> Quantity.of("sampled/cost", {"cost": Shown(title="price", unit="%", higher_is_better=False)})
        Quantity(column='sampled/cost', title='Price, sampled', label='price (%)', factor=100.0, better=-1)
        >>> Quantity.of("train/maths/kl").title
        'KL to the teacher, maths'
        """
        group, _, name = column.rpartition("/")
        words = name.replace("_", " ").strip() or column
        of_training = group.partition("/")[0] == "train"  # that of a term or a teacher, too
        told = shown or {}
        trained = told.get(f"train/{name}") or _TRAINED.get(name) if of_training else None
        known = trained or told.get(name) or Shown(title=words)
        if group == "train/seconds":
            known = Shown(title=f"time for {words}", unit="s")
        title = f"{known.title[:1].upper()}{known.title[1:]}"
        if group in _GROUPS:
            title = f"{_GROUPS[group]}: {known.title}"
        elif group and group != "train/seconds":
            title = f"{title}, {group.removeprefix('train/')}"
        label = f"{known.title} ({known.unit})" if known.unit else known.title
        better = {True: 1, False: -1, None: 0}[known.higher_is_better]
        return cls(column, title, label, 100.0 if known.unit == "%" else 1.0, better)

    @property
    def group(self) -> str:
        """The evaluation, or `train` or `validation`."""
        return self.column.rpartition("/")[0]

    @property
    def is_time(self) -> bool:
        """Whether it tells how long something took, or how fast it was."""
        return self.column.startswith(("train/seconds", "train/tokens_per_second"))

    @property
    def words(self) -> str:
        """What it is called, without the unit."""
        return self.label.partition(" (")[0]

    @property
    def heading(self) -> str:
        """The label and the evaluation, such as `accuracy (%), greedy`."""
        return f"{self.label}, {self.group}" if self.group else self.label


def in_order(columns: Iterable[str], shown: Mapping[str, Shown]) -> list[Quantity]:
    """Return training first, then validation, each in the order in which it is described, and the others by name."""
    places = {f"train/{name}": i for i, name in enumerate(_TRAINED)}
    places |= {f"validation/{name}": len(places) + i for i, name in enumerate(shown) if "/" not in name}
    ordered = sorted(set(columns), key=lambda column: (places.get(column, len(places)), _by_number(column)))
    return [Quantity.of(column, shown) for column in ordered]


def _by_number(column: str) -> list[tuple[float, str]]:
    """Return what sorts columns by name, and by number where they differ in one: turn 9 before 10, .25 before .5."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", column)
    return [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]
