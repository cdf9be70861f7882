"""Guards against collapse: bounds on what a training step logs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.exceptions import ConfigurationError

Action = Literal["warn", "stop"]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A bound on a number of the training log.

    Args:
        metric: `entropy` means `train/entropy`, and in a sum of objectives that of each term, `train/kd/entropy`;
            `kd/entropy` means that of one term.
        reason: what it means when the bound is crossed, and what to do.
        below: the guard acts below this.
        above: the guard acts above this.
        of_first: the bound is a multiple of the mean over the first so many steps; None means that it is absolute.
        patience: steps in a row beyond the bound until the guard acts. Steps that do not log the number, and those
            whose number is NaN, count for neither side.
        action: `warn` once, or `stop` the run; None means what `Guards.action` says.

    Raises:
        ConfigurationError: not exactly one bound, one that is not finite, or a number of steps below 1.
    """

    metric: str
    reason: str
    below: float | None = None
    above: float | None = None
    of_first: int | None = None
    patience: int = 20
    action: Action | None = None

    def __post_init__(self) -> None:
        if (self.below is None) == (self.above is None):
            raise ConfigurationError(
                f"The guard of `{self.metric}` must have one bound, `below` or `above`, got {self.below} and "
                f"{self.above}."
            )
        bound = self.below if self.above is None else self.above
        if bound is None or not math.isfinite(bound):
            raise ConfigurationError(f"The bound of the guard of `{self.metric}` must be finite, got {bound}.")
        if self.patience < 1 or (self.of_first is not None and self.of_first < 1):
            raise ConfigurationError(
                f"`patience` and `of_first` of the guard of `{self.metric}` must be at least 1, got {self.patience} "
                f"and {self.of_first}."
            )

    def watches(self, name: str) -> bool:
        """Return whether this guard applies to a logged name, such as `train/kd/entropy`."""
        return f"/{name.removeprefix('train/')}".endswith(f"/{self.metric.removeprefix('train/')}")

    def limit(self, start: float | None) -> float:
        """Return the bound, multiplied by the mean of the first steps where that is given."""
        bound = self.below if self.above is None else self.above
        assert bound is not None, "one of them is set"
        return bound if start is None else bound * start

    def crossed(self, value: float, limit: float) -> bool:
        """Return whether the value lies beyond the limit."""
        return value < limit if self.above is None else value > limit


DEFAULTS = (
    Guard(
        metric="repetition",
        above=0.5,
        patience=20,
        reason="The student repeats itself: more than half of the 4-grams of its completions are copies. Often it is "
        "drawn to what it samples, not to the teacher. Lower the learning rate, or mix in completions of the data set.",
    ),
    Guard(
        metric="unfinished",
        above=0.95,
        patience=100,
        reason="Hardly any completion ends: they run into `max_new_tokens`, so EOS is never learned. Raise "
        "`max_new_tokens`, or begin with completions of the data set, which end.",
    ),
    Guard(
        metric="completion_length",
        below=0.2,
        of_first=20,
        patience=20,
        reason="Completions have shrunk to a fifth of their length: the student escapes the loss by ending early. Use "
        "`aggregation: sequence` or a lower learning rate.",
    ),
    Guard(
        metric="completion_length",
        below=1.0,
        patience=1,
        action="warn",
        reason="The step trained on no completion token: every completion of the batch is empty. Look at the data and "
        "at `samples.jsonl`.",
    ),
    Guard(
        metric="selected",
        below=1e-6,
        reason="The objective leaves out every completion token, so nothing is learned: no row has the peer or the "
        "feedback that it waits for, or completions are shorter than what is skipped. Sample more completions of each "
        "prompt, or look at what the objective selects.",
    ),
    Guard(
        metric="entropy",
        below=0.01,
        of_first=20,
        patience=50,
        reason="The student is sure of nearly every token: its entropy has fallen to a hundredth. Where `train/kl` is "
        "not small, it has collapsed onto few completions. Use a forward KL, a higher temperature or a lower rate.",
    ),
    Guard(
        metric="agreement",
        below=0.5,
        of_first=20,
        patience=50,
        reason="The student prefers the teacher's token half as often as in the beginning: it moves away from the "
        "teacher. Lower the learning rate.",
    ),
)


@dataclass
class _GuardState:
    """What a guard remembers about one number: all of it is in checkpoints."""

    total: float = 0.0
    count: int = 0
    beyond: int = 0
    has_acted: bool = False

    def start(self, guard: Guard) -> float | None:
        return None if guard.of_first is None else self.total / guard.of_first

    def patience_is_over(self, guard: Guard, value: float) -> bool:
        """Record a step's value. Return whether it was beyond the bound for `guard.patience` steps in a row."""
        if guard.of_first is not None and self.count < guard.of_first:
            if math.isfinite(value):
                self.total, self.count = self.total + value, self.count + 1
            return False
        self.beyond = self.beyond + 1 if guard.crossed(value, guard.limit(self.start(guard))) else 0
        return self.beyond >= guard.patience


class Guards(L.Callback):
    """Warns, or stops the run, where the student collapses: repetition, length, entropy, overlap with the teacher.

    A run that is stopped ends as after its last step: with checkpoint, export and summary, which has the reason.

    Args:
        guards: the bounds; None takes the default ones, an empty list takes none.
        action: of all guards that do not say theirs.
    """

    def __init__(self, guards: list[Guard] | None = None, action: Action = "warn") -> None:
        self.guards: Sequence[Guard] = DEFAULTS if guards is None else guards
        self.action = action
        self.stopped: str | None = None
        self._states: dict[str, _GuardState] = {}
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the step at which training starts or goes on."""
        self._step = trainer.global_step
        self.stopped = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Check what an optimizer step logged, and warn or stop the run. Collective: call it on every rank."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        stops = False
        for guard, message in self._triggered(getattr(pl_module, "logged", {})):
            stop = (guard.action or self.action) == "stop"
            stops |= stop
            end = f" The run stops here, at step {self._step}." if stop else ""
            rank_zero_warn(f"Step {self._step}: {message}{end}")
            if stop and self.stopped is None:
                self.stopped = f"step {self._step}: {message}"
        if self._may_stop and trainer.strategy.reduce_boolean_decision(stops, all=False):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return baselines and counts, so that a resumed run acts at the same step as one that was not stopped."""
        return {name: dict(vars(watch)) for name, watch in self._states.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore baselines and counts; a guard whose bound has changed starts anew."""
        self._states = {name: _GuardState(**values) for name, values in state_dict.items()}

    @property
    def _may_stop(self) -> bool:
        return any((guard.action or self.action) == "stop" for guard in self.guards)

    def _triggered(self, logged: dict[str, float]) -> Iterator[tuple[Guard, str]]:
        """Yield the guards whose patience ends with this step, each with its message."""
        for guard in self.guards:
            for name in filter(guard.watches, logged):
                watch = self._states.setdefault(_key(guard, name), _GuardState())
                value = logged[name]
                if math.isnan(value) or not watch.patience_is_over(guard, value):
                    continue
                watch.beyond = 0  # a run that is resumed after a stop has all its patience again
                if (guard.action or self.action) == "stop" or not watch.has_acted:
                    watch.has_acted = True
                    yield guard, _message(guard, watch, name, value)


def _key(guard: Guard, name: str) -> str:
    return f"{name} below {guard.below} above {guard.above} of the first {guard.of_first}"


def _message(guard: Guard, watch: _GuardState, name: str, value: float) -> str:
    side = "below" if guard.above is None else "above"
    start = watch.start(guard)
    origin = "" if start is None else f", made of its mean in the first {guard.of_first} steps, {start:.4g}"
    steps = "" if guard.patience == 1 else f" for {guard.patience} steps in a row"
    return f"`{name}` is {value:.4g}, {side} {guard.limit(start):.4g}{steps}{origin}. {guard.reason}"
