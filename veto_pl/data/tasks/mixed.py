"""Several data sets, mixed by weights, each with its own task, template, reward and teacher."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

from veto_pl.core.bounds import Bounded, NonNegative
from veto_pl.data.example_rows import ExampleStream
from veto_pl.data.fingerprints import digest
from veto_pl.data.functions import as_reward, as_template
from veto_pl.data.mixtures import Ingredient, MixedExamples, MixedStream, origins
from veto_pl.data.rewards import NoReward
from veto_pl.data.tasks.judged import Judged
from veto_pl.data.tasks.rows import Rows
from veto_pl.data.templates import BySource, PlainTemplate
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Example, Reward, Task, Template


@dataclass(frozen=True, kw_only=True)
class DataSet(Bounded):
    """A data set of a mixture.

    Args:
        task: its rows, and how their completions are judged.
        weight: its share of the training rows, relative to the others'. 0 trains on none of it and validates on it all
            the same. None, for all sets or for none, takes their numbers of rows: every row once in an epoch.
        template: how its rows become prompts; None takes `data.template`.
        reward: judges its completions in place of the task, as `data.reward` does.
        teacher: the name of the teacher of its rows, for objectives with several teachers; rows that name one keep it.
    """

    task: Task
    weight: NonNegative | None = None
    template: Template | str | None = None
    reward: Reward | str | None = None
    teacher: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.template, str):
            object.__setattr__(self, "template", as_template(self.template))
        object.__setattr__(self, "reward", as_reward(self.reward))

    @property
    def judged(self) -> Task:
        """The task, judged by the reward if there is one."""
        reward = as_reward(self.reward)
        return self.task if reward is None else Judged(task=self.task, verifier=reward)


@dataclass(frozen=True, kw_only=True)
class Mixed(Task):
    """Several data sets, whose training rows are mixed by weights; each is also validated by itself.

    An epoch reads every row of every set once at least, and sets that are too small for their weight again. Rows of a
    set are judged by it alone, and metrics of a set have its name in front of theirs, as `validation/maths/accuracy`.

    Args:
        sets: the data sets by their names.

    Raises:
        ConfigurationError: there is none, a name has other characters than letters, digits, `-` and `_`, some weights
            are set and others not, all are 0, or sets end completions by different stop strings.
    """

    sets: dict[str, DataSet] = field(hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if odd := [name for name in self.sets if re.fullmatch(r"[\w-]+", name) is None]:
            raise ConfigurationError(
                f"`Mixed.sets` expected names of letters, digits, `-` and `_`, got {odd[0]!r}. Rename it."
            )
        weights = [one.weight for one in self.sets.values()]
        given = [weight for weight in weights if weight is not None]
        if not weights or (given and (len(given) < len(weights) or not sum(given))):
            raise ConfigurationError(
                f"`Mixed.sets` expected a weight for each set, one of them above 0, or none at all, got {weights}."
            )
        if nested := [name for name, one in self.sets.items() if one.task.sources]:
            raise ConfigurationError(f"`Mixed.sets.{nested[0]}` is a mixture itself. Name its sets beside the others.")
        if len({one.task.stop for one in self.sets.values()}) > 1:
            raise ConfigurationError("`Mixed.sets` expected the same `stop` in all tasks, for a batch has rows of all.")

    @classmethod
    def examples(cls, folder: Path) -> tuple[Mixed, ...]:
        rows, *_, streamed = Rows.examples(folder)
        sets = {"sums": DataSet(task=rows), "others": DataSet(task=rows, reward=NoReward(), template=PlainTemplate())}
        weighed = DataSet(task=streamed, weight=1.0)
        return cls(sets=sets), cls(sets={"sums": weighed})

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of the sets."""
        return tuple(self.sets)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the teachers that the sets name."""
        named = [name for one in self.sets.values() for name in (one.teacher, *one.task.teachers) if name]
        return tuple(dict.fromkeys(named))

    @property
    def judges(self) -> bool:
        """Whether all sets do."""
        return all(one.judged.judges for one in self.sets.values())

    @property
    def stop(self) -> tuple[str, ...]:
        """Return the strings that end a completion, which all sets share."""
        return next(iter(self.sets.values())).task.stop

    def shown_by(self, template: Template) -> Template:
        """Return the template that shows each row by that of its set."""
        own = {name: one.template for name, one in self.sets.items() if one.template is not None}
        return BySource(default=template, templates={name: as_template(one) for name, one in own.items()})

    def load(self, split: str) -> Sequence[Example] | ExampleStream:
        """Return the rows of all sets, mixed where they are trained on."""
        parts = tuple(
            Ingredient(name, one.task.load(split), one.weight, one.teacher) for name, one in self.sets.items()
        )
        if all(isinstance(part.examples, Sized) for part in parts):
            return MixedExamples(tuple(part for part in parts if len(part.examples)))
        if any(part.weight is None for part in parts):
            raise ConfigurationError(
                "`Mixed.sets` has a stream, whose number of rows nobody knows. Set the `weight` of each set."
            )
        parts = tuple(part for part in parts if part.weight)
        known = digest(*(str(getattr(part.examples, "fingerprint", len_of(part.examples))) for part in parts))
        return ExampleStream(MixedStream(parts), origin=origins(parts), fingerprint=known)

    def reward(self, example: Example, completion: str) -> float:
        """Return the score by the set that the row comes from."""
        return self.sets[example.source].judged.reward(example, completion)

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the score of each pair by its set; those of a set are judged together."""
        scores: dict[int, float] = {}
        for name, one in self.sets.items():
            rows = [i for i, example in enumerate(examples) if example.source == name]
            if rows:
                given = one.judged.rewards([examples[i] for i in rows], [completions[i] for i in rows])
                scores |= zip(rows, given, strict=True)
        return [scores[i] for i in range(len(examples))]


def len_of(examples: Iterable[Example]) -> int | None:
    """Return the number of rows, if there is one."""
    return len(examples) if isinstance(examples, Sized) else None
