"""A study: which methods are compared, on what, with how much."""

from dataclasses import field
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from veto_pl.compare.run_kind import RunKind, Settings
from veto_pl.compare.run_kinds import KINDS
from veto_pl.core.mistakes import did_you_mean
from veto_pl.exceptions import ConfigurationError

_NEVER = 1_000_000_000  # steps: schedules ask for a finite length until the first share of a budget is spent
_TAKEN = ("checkpoints", "export", "tensorboard", "train", "validation")  # in the folder of a run, or in its log
_EXACT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _named(name: str) -> str:
    if not name.strip() or "{" in name or "}" in name:
        raise ValueError("a name must hold a letter and no brace")
    return name


def _folder(name: str) -> str:
    if name.lower() in _TAKEN:
        raise ValueError(f"it names a folder of the run, and {', '.join(_TAKEN)} are taken")
    return name


def _kind(given: Any) -> Any:
    if isinstance(given, str) and given not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}. {did_you_mean(given, KINDS)}".strip())
    return KINDS[given] if isinstance(given, str) else given


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("the numbers must be distinct")
    return values


Name = Annotated[str, AfterValidator(_named)]
"""Of a method or a stage."""
EvaluationName = Annotated[str, Field(pattern=r"^[\w@-]+$"), AfterValidator(_folder)]
"""It is that of a folder, too."""
Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]


@dataclass(frozen=True, kw_only=True, config=_EXACT)
class Stage:
    """A run that others start from, such as the teacher's fine-tuning.

    Args:
        config: files of settings, behind those of the study.
        settings: settings, behind the files.
        per_seed: whether every seed has one of its own, or all share one of seed 0.
    """

    config: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    per_seed: bool = False


@dataclass(frozen=True, kw_only=True, config=_EXACT)
class Method:
    """What is compared.

    Args:
        config: files of settings, behind those of the study.
        settings: settings, behind the files.
        search: whether its settings are searched for; else those that are written here are used.
    """

    config: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    search: bool = True


@dataclass(frozen=True, kw_only=True, config=_EXACT)
class EqualBudget:
    """What every run is given: one of the four.

    Args:
        steps: optimizer steps.
        tokens: completion tokens, or states of a denoising model.
        turns: of the student in episodes; a completion without an environment is one.
        seconds: seconds of training; then results depend on the machine and its load.

    Raises:
        ValidationError: not exactly one is set.
    """

    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    turns: PositiveInt | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def __post_init__(self) -> None:
        if len(self._given) != 1:
            raise ConfigurationError(
                f"`budget` of a study must set steps, tokens, turns or seconds, got {self._given}."
            )

    @property
    def unit(self) -> str:
        """Which one is set."""
        return next(iter(self._given))

    @property
    def _given(self) -> dict[str, float]:
        given = {"steps": self.steps, "tokens": self.tokens, "turns": self.turns, "seconds": self.seconds}
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        ((unit, amount),) = self._given.items()
        return f"{amount:,} {unit}"

    @property
    def settings(self) -> Settings:
        """The settings of a run; no other limit that its files set may end it earlier."""
        limits = {"steps": None, "tokens": None, "turns": None, "seconds": None, **self._given}
        return {"trainer": {"max_steps": self.steps or _NEVER, "max_epochs": -1, "max_time": None}, "budget": limits}


@dataclass(frozen=True, kw_only=True, config=_EXACT)
class SettingSearch:
    """The same search for every method: all points of a grid, ranked on the validation split.

    Args:
        grid: place of a setting, such as `model.optimizer.init_args.lr`, -> the values that are tried.
        seeds: of the runs of the search; they must not be seeds of the comparison.
        metric: of the validation at the end of a run; its mean over the seeds ranks a point.
        mode: whether a larger or a smaller value is better.
    """

    grid: dict[str, Annotated[tuple[int | float, ...], Field(min_length=1)]] = field(default_factory=dict)
    seeds: Seeds = (0,)
    metric: str = "validation/accuracy"
    mode: Literal["max", "min"] = "max"

    @property
    def points(self) -> list[dict[str, int | float]]:
        """All points of the grid; one without any setting where there is no grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


@dataclass(frozen=True, kw_only=True, config=_EXACT)
class Study:
    r"""Methods compared at equal budget, over seeds.

    `{name}` in a string of the settings stands for the folder of the stage of that name, `{name}/export` for its model.

    Args:
        title: headline of the page.
        methods: name -> what it is.
        baseline: the method that the others are tested against.
        budget: what every run of a method is given.
        runs: of which kind they are: `texts` or `denoising`.
        intro: plain text under the headline; an empty line starts a paragraph.
        config: files of settings that all runs share, relative to the study's file.
        settings: settings that all runs share, behind the files.
        stages: runs that others start from, in order; a stage may name those before it.
        student: settings of the runs of all methods, which the stages do not share.
        seeds: every method is run with each of them.
        search: how the settings of the methods are found.
        evaluations: name -> settings of `model.evaluation` for the test split.
        test: settings of the runs of `veto-pl test`, such as other metrics, `{model: {metrics: [...]}}`.
        quantities: what the table shows, `evaluation/metric`; by default the accuracy, or energy distance, of each.
        frontier: diversity and reward, two quantities that are drawn against each other.
        devices: processes, or accelerators, of each run; as many as its `trainer` asks for.
        answers: test rows that the page shows: prompts, answered token by token, or images.
        confidence: of the intervals.

    Raises:
        ValidationError: an entry is not what it should be, or entries do not fit one another.
    """

    title: str
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    baseline: str
    budget: EqualBudget
    runs: Annotated[RunKind, BeforeValidator(_kind)] = KINDS["texts"]
    intro: str = ""
    config: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    stages: dict[Name, Stage] = field(default_factory=dict)
    student: Settings = field(default_factory=dict)
    seeds: Seeds = (1, 2, 3, 4, 5)
    search: SettingSearch = field(default_factory=SettingSearch)
    evaluations: Annotated[dict[EvaluationName, Settings], Field(min_length=1)] = field(
        default_factory=lambda: {"greedy": {"temperature": 0.0}}
    )
    test: Settings = field(default_factory=dict)
    quantities: tuple[str, ...] = ()
    frontier: tuple[str, str] | None = None
    devices: PositiveInt = 1
    answers: NonNegativeInt = 8
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95

    def __post_init__(self) -> None:
        if self.baseline not in self.methods:
            methods = ", ".join(self.methods)
            raise ConfigurationError(f"`baseline` of a study must be one of {methods}, got {self.baseline!r:.80}.")
        if self.budget.unit not in self.runs.budgets:
            raise ConfigurationError(
                f"`budget` of such runs must set {', '.join(self.runs.budgets)}, got {self.budget.unit}."
            )
        for quantity in (*self.quantities, *(self.frontier or ())):
            if quantity.partition("/")[0] not in self.evaluations:
                raise ConfigurationError(
                    f"`quantities` and `frontier` expected an evaluation ({', '.join(self.evaluations)}) and a metric, "
                    f"such as {next(iter(self.evaluations))}/{self.runs.metric}, got {quantity!r:.80}."
                )
        if shared := set(self.seeds) & set(self.search.seeds) if self.searches else set():
            raise ConfigurationError(
                f"`search.seeds` must not be seeds of the comparison, or the search would choose by luck that counts: "
                f"both hold {sorted(shared)}."
            )

    @property
    def budget_text(self) -> str:
        """The budget in words, with what the tokens of such runs are."""
        return str(self.budget).replace("tokens", self.runs.counted)

    @property
    def searches(self) -> bool:
        """Whether there is a choice."""
        return len(self.search.points) > 1

    @property
    def shown(self) -> tuple[str, ...]:
        """The quantities of the table."""
        return self.quantities or tuple(f"{name}/{self.runs.metric}" for name in self.evaluations)

    @property
    def measured(self) -> tuple[str, ...]:
        """The quantities of the table and of the frontier, each once."""
        return tuple(dict.fromkeys((*self.shown, *(self.frontier or ()))))
