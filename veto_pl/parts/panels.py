"""Which teachers look at a rollout."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.functional.compiled_numbers import Number
from veto_pl.functional.differentiation import belongs
from veto_pl.functional.pooled_head import Pool
from veto_pl.parts.schedules import value_at
from veto_pl.seams import (
    Example,
    Mistake,
    Models,
    Panel,
    Reading,
    Schedule,
    Sequences,
    Setup,
    Step,
    TeacherContext,
    reading,
)
from veto_pl.seams.teacher_names import TEACHER, listed, setting_of


@dataclass(frozen=True)
class OneTeacher(Panel):
    """One teacher reads everything.

    Args:
        teacher: its name in `model.teachers`; `teacher` is `model.teacher`.
    """

    aligns_tokenizers = True
    teacher: str = TEACHER

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        return (self.teacher,)

    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        return (reading(self.teacher, sequences, context, models, step),)

    @property
    def is_neutral(self) -> bool:
        """Return whether `model.teacher` reads everything, and the call is still that of this class."""
        return self.teacher == TEACHER and belongs(self, "is_neutral", "__call__")


@dataclass(frozen=True)
class Routed(Panel):
    """Each row is read by the one teacher that it names.

    Args:
        column: the field of the row that names the teacher; None takes the name that the data gives the row: the
            setting `teacher` of a task of rows, or of a set of a mixture.
        routes: the teachers by what stands in the rows, where that is not their names; what is not in here is a name.
        default: reads rows that name nobody, for lack of the field or with an empty one; None for none.
        otherwise: what becomes of a row that names nobody or no teacher of the run: `error` ends the run, `leave` does
            not train on it.

    Raises:
        DataError: a row names nobody, or no teacher of the run.

    References:
        arXiv 2605.03677, section on several teachers
    """

    aligns_tokenizers = True
    column: str | None = None
    routes: Mapping[str, str] = field(default_factory=dict, hash=False)
    default: str | None = None
    otherwise: Literal["error", "leave"] = "error"

    @classmethod
    def examples(cls) -> tuple["Routed", ...]:
        return cls(default=TEACHER), cls(column="teacher", routes={"sums": TEACHER}, otherwise="leave")

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        others = [*self.routes.values(), *([] if self.default is None else [self.default])]
        return tuple(dict.fromkeys((*named, *others)))

    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        names = self._names(sequences, models)

        def of(teacher: str) -> Reading:
            rows = torch.tensor([row for row, name in enumerate(names) if name == teacher], dtype=torch.int64)
            return reading(teacher, sequences, context, models, step, rows=rows)

        return tuple(of(teacher) for teacher in self.asks(models.teacher_names))

    def named_by(self, example: Example) -> str:
        """Return the teacher that a row names; empty where it names nobody and there is no default."""
        key = example.teacher if self.column is None else example.row.get(self.column)
        if key is None or key == "":
            return self.default or ""
        return self.routes.get(str(key), str(key))

    def planned(self) -> Panel:
        """Return a panel in which every teacher reads everything."""
        return Together()

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield names that the data gives its rows, and that no teacher has."""
        told = () if self.column is not None or self.otherwise == "leave" else setup.task.teachers
        for key in told:
            if (name := self.routes.get(key, key)) not in setup.teachers:
                yield Mistake(path, f"rows for the teacher `{name}`", f"one of {listed(setup.teachers)}",
                              f"Set `{setting_of(name)}`, or name another in the data or in `routes`.")  # fmt: skip

    def _names(self, sequences: Sequences, models: Models) -> list[str]:
        """Return the teacher of each row; empty for a row that is left out."""
        assert sequences.prompts is not None, "every source names the prompts that it has completed"
        examples = sequences.prompts.examples
        of_prompts = [self.named_by(example) for example in examples]
        known = models.teacher_names
        numbers = sequences.prompts.on_host.numbers.tolist()
        for number, example, name in zip(numbers, examples, of_prompts, strict=True):
            if name not in known and self.otherwise == "error":
                raise DataError(self._refusal(number, example, name, listed(known)))
        rows = sequences.prompt_rows.tolist()
        return [of_prompts[row] if of_prompts[row] in known else "" for row in rows]

    def _refusal(self, number: int, example: Example, name: str, known: str) -> str:
        where = "its `teacher`" if self.column is None else f"its field `{self.column}`"
        said = f"asks for the teacher `{name}`" if name else f"names no teacher: {where} is missing or empty"
        return (
            f"`Routed`: row {number} ({example.prompt[:60]!r}) {said}. The run has {known}. Correct the row, set "
            "`default` or `routes`, or leave such rows out by `otherwise: leave`."
        )


@dataclass(frozen=True)
class Together(Panel):
    r"""Every teacher reads everything, and the losses against them are averaged, or they are one teacher.

    .. math:: L_t = \sum_k w_k\, L_t(p_k) \quad (\text{loss}), \qquad
        L_t = L_t\Big(\sum_k w_k\, p_k\Big) \quad (\text{target}), \qquad \sum_k w_k = 1

    Of losses, a policy gradient takes :math:`\sum_k w_k \log p_k(y_t)` for the teacher's log-probability, and under a
    target that of the mixture. The mixture is made of the models as they are; the temperature of an objective divides
    its logarithm, as it divides the logits of one teacher.

    Args:
        weights: of each teacher by its name, numbers or schedules, relative to their sum. At steps where it is 0 a
            teacher reads nothing. Empty for all teachers of the run alike.
        combine: `loss` averages the losses, `target` compares with the mixture of the teachers.

    Raises:
        ConfigurationError: a weight is negative or not finite, or all are 0.
    """

    aligns_tokenizers = True
    weights: Mapping[str, float | Schedule] = field(default_factory=dict, hash=False)
    combine: Literal["loss", "target"] = "loss"

    @classmethod
    def examples(cls) -> tuple["Together", ...]:
        return cls(), cls(combine="target")

    @property
    def pool(self) -> Pool | None:
        """Return `mixture` where the teachers are one."""
        return "mixture" if self.combine == "target" else None

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [weight for weight in self.weights.values() if not isinstance(weight, Schedule)]
        if len(numbers) == len(self.weights) and numbers:
            _shares(numbers)

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.weights or named)

    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        names = self.asks(models.teacher_names)
        shares = _shares([value_at(self.weights.get(name, 1.0), step.index, step.total) for name in names])
        nothing = torch.zeros(0, dtype=torch.int64)

        def of(name: str, share: float) -> Reading:
            rows, weight = (None, share) if share else (nothing, 1.0)
            return reading(name, sequences, context, models, step, rows=rows, weight=weight)

        return tuple(of(name, share) for name, share in zip(names, shares, strict=True))

    def with_tensors(self, number: Number, step: Step) -> "Together":
        """Return the panel itself: kernels read no weights."""
        return self


@dataclass(frozen=True)
class Shifted(Panel):
    r"""One teacher that is made of an anchor and of what further training has changed in experts.

    .. math:: q = \mathrm{softmax}\Big( z_A + \sum_i (z_{T_i} - z_{B_i}) \Big)

    with the logits z of the anchor A, of the experts :math:`T_i`, and of the models :math:`B_i` that they were trained
    from. Every model reads everything. What an expert and its base have in common, such as a style, is not taught. An
    expert that equals its base changes nothing.

    Args:
        shifts: the name of the base by the name of each expert; empty for the anchor alone.
        anchor: its name; the student's start in the paper.

    References:
        arXiv 2610.10460
    """

    shifts: Mapping[str, str] = field(default_factory=dict, hash=False)
    anchor: str = TEACHER

    @classmethod
    def examples(cls) -> tuple["Shifted", ...]:
        return cls(), cls({TEACHER: TEACHER})

    @property
    def pool(self) -> Pool | None:
        """Return `logits`."""
        return "logits"

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.anchor, *self.shifts, *self.shifts.values())))

    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        weights = Counter([self.anchor, *self.shifts])
        weights.subtract(self.shifts.values())
        return tuple(reading(name, sequences, context, models, step, weight=weights[name]) for name in self.asks(()))

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield that nothing is shifted."""
        if not self.shifts:
            yield Mistake(f"{path}.init_args.shifts", "no experts", "the base of each expert, by the expert's name",
                          "Without any, the anchor is the teacher.", fatal=False)  # fmt: skip


def _shares(weights: Sequence[float]) -> list[float]:
    """Divide weights by their sum; raise `ConfigurationError` where that cannot be."""
    total = sum(weights)
    if not all(0 <= weight < float("inf") for weight in weights) or not total:
        raise ConfigurationError(
            f"`Together.weights` expected numbers of at least 0, one of them above, got {list(weights)}."
        )
    return [weight / total for weight in weights]
