"""What a study found: the trials, and what they say together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import BaseModel
from pydantic import dataclasses as checked

from veto_pl.report.columns import Quantity, Shown
from veto_pl.report.pictures import Picture
from veto_pl.report.run import Run
from veto_pl.seams.playing import Line, opening_of, spoken_in


class EvaluationResult(BaseModel):
    """The file `test.json` of an evaluation: its metrics, and how they are shown."""

    split: str = "test"
    metrics: dict[str, float | None]
    quantities: dict[str, Shown] = {}


class Summary(BaseModel):
    """The file `summary.json` of a training; `stopped` says why it ended early, where it did.

    `stopped_by_choice` is true where the configuration asks for that end, as early stopping does.
    """

    skipped_steps: int
    stopped: str | None = None
    stopped_by_choice: bool = False


@checked.dataclass(frozen=True)
class Answer:
    """A completion of a test row, token by token.

    Args:
        prompt: what the student read.
        reference: the expected completion, if there is one.
        reward: the task's score; 1 is right.
        tokens: the texts of the completion's tokens.
        forward_kl: KL(teacher || student) at each token, in nats; empty where there is no teacher.
        reverse_kl: KL(student || teacher) at each token, in nats; empty where there is no teacher.
        turns: the student's turn that each token belongs to, in an episode; empty for a single answer.
        dialogue: what was said in an episode; likewise.
    """

    prompt: str
    reference: str | None
    reward: float
    tokens: tuple[str, ...]
    forward_kl: tuple[float, ...] = ()
    reverse_kl: tuple[float, ...] = ()
    turns: tuple[int, ...] = ()
    dialogue: tuple[Line, ...] = ()

    @property
    def opening(self) -> tuple[Line, ...]:
        """What was said before the student's first turn."""
        return opening_of(self.dialogue)

    @property
    def spoken(self) -> tuple[Line, ...]:
        """The student's turns and the replies; none where it is not known which tokens belong to which."""
        known = len(self.turns) == len(self.tokens)
        return spoken_in(self.dialogue) if known else ()


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Args:
        steps: optimizer steps.
        tokens: completion tokens, or states, that were trained on.
        seconds: wall time of the training.
        skipped: steps without an update, because the loss or its gradient was not finite.
        turns: of the student in episodes; None where it has played none.
    """

    steps: int
    tokens: int
    seconds: float
    skipped: int = 0
    turns: int | None = None


@dataclass(frozen=True)
class Trial:
    """One method with one seed, trained and tested.

    Args:
        method: the method's name.
        seed: the seed of the run.
        run: its folder: curves of training and validation.
        values: the test's metrics, `evaluation/metric` -> value, such as `greedy/accuracy` and `sampled/pass@8`.
        cost: what the training took.
        answers: the first test rows, in the same order in every trial, as the first evaluation answered them.
        shown: the test's metrics by name -> how they are shown.
        pictures: of what the first evaluation sampled, and of its targets.
    """

    method: str
    seed: int
    run: Run
    values: Mapping[str, float]
    cost: Cost
    answers: tuple[Answer, ...] = ()
    shown: Mapping[str, Shown] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval; the bounds are NaN for a single seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Contrast:
    """A method minus the baseline, seed by seed.

    Args:
        difference: the mean difference with its confidence interval, which excludes 0 where p is significant.
        p: of the paired test, corrected for the number of methods (Holm); NaN where it cannot be computed.
        seeds: number of seeds that both have.
    """

    difference: Estimate
    p: float
    seeds: int


@dataclass(frozen=True)
class Search:
    """The settings that a method was tried with on the validation split, before the seeds of the comparison ran.

    Args:
        metric: what the settings are ranked by.
        scores: setting, as text -> the metric; NaN where a run failed, or ended without a finite value.
        chosen: the setting that the trials use.
        at_edge: whether the chosen setting lacks a neighbour in its grid that has a score, so that a better one may lie
            there.
    """

    metric: str
    scores: Mapping[str, float]
    chosen: str
    at_edge: bool

    @property
    def ranked(self) -> list[float]:
        """The scores that there are."""
        return [score for score in self.scores.values() if math.isfinite(score)]

    @property
    def tied(self) -> int:
        """How many settings have the score of the chosen one, itself included."""
        best = self.scores[self.chosen]
        # The same scores of several seeds may add up to means that differ by rounding.
        return sum(math.isclose(score, best, rel_tol=1e-9) for score in self.ranked)


@dataclass(frozen=True)
class Comparison:
    """A finished, or unfinished, study.

    Args:
        title: headline.
        intro: plain text; an empty line starts a paragraph.
        budget: what every run was given, as text, such as `400 steps`.
        baseline: the method that the others are tested against.
        methods: names in the order of the study.
        seeds: all seeds of the study.
        quantities: the test's metrics that the table shows, in order, such as `greedy/accuracy`.
        frontier: two names of `quantities`: diversity, and reward.
        trials: those that are finished.
        estimates: (method, quantity) -> mean over seeds.
        contrasts: (method, quantity) -> difference from the baseline; the baseline itself has none.
        searches: method -> its search; empty where nothing was searched.
        failures: a run, or a search, by its name -> why it failed.
        confidence: of the intervals, such as 0.95.
        command: what makes this page again.
        counted: what the tokens of a cost are.
    """

    title: str
    intro: str
    budget: str
    baseline: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    quantities: tuple[str, ...]
    frontier: tuple[str, str] | None
    trials: tuple[Trial, ...]
    estimates: Mapping[tuple[str, str], Estimate]
    contrasts: Mapping[tuple[str, str], Contrast]
    searches: Mapping[str, Search] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 0.95
    command: str = ""
    counted: str = "completion tokens"

    @property
    def pictured(self) -> dict[str, Trial]:
        """Method -> its trial of the first seed that has pictures."""
        found: dict[str, Trial] = {}
        for seed in self.seeds:
            for trial in self.trials:
                if trial.seed == seed and trial.pictures:
                    found.setdefault(trial.method, trial)
        return found

    @property
    def plays(self) -> bool:
        """Whether a run has played episodes, so that turns are a cost."""
        return any(trial.cost.turns is not None for trial in self.trials)

    @cached_property
    def shown(self) -> Mapping[str, Shown]:
        """Metric -> how it is shown, as the tests and the runs say."""
        parts = [*(trial.shown for trial in self.trials), *(trial.run.shown for trial in self.trials)]
        return {name: of for part in reversed(parts) for name, of in part.items()}

    def quantity(self, column: str) -> Quantity:
        """Return how a column of the runs, or a metric of the test, is shown."""
        return Quantity.of(column, self.shown)

    def of(self, method: str) -> tuple[Trial, ...]:
        """Return the trials of a method, ordered by seed."""
        return tuple(sorted((t for t in self.trials if t.method == method), key=lambda trial: trial.seed))
