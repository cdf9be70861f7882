"""The student writes as often as validation asks for it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from veto_pl.core.bounds import Count, NonNegative, UnitInterval
from veto_pl.core.memory import Memory, State
from veto_pl.core.sampling import SEVERAL
from veto_pl.exceptions import ConfigurationError
from veto_pl.rollouts.replay import ReplayBuffer
from veto_pl.rollouts.sources import FromDataset, FromStudent, Mixture
from veto_pl.seams import Mistake, Models, PromptBatch, RolloutSource, Sequences, Setup, Step


@dataclass(frozen=True)
class AdaptiveReplay(RolloutSource):
    r"""The task's completions, until validation gets worse: then more and more of the student's, most of them replayed.

    With a uniform number r for each step: where :math:`r < \phi (1 - t/T)` the student writes, and the rows are kept;
    else where :math:`r < \phi` earlier rows are replayed; else the task's completions are used. Whenever the loss of a
    validation is at least `tolerance` above that of the validation at which :math:`\phi` last moved (at first: of the
    first validation), :math:`\phi` grows by `increment`, up to 1. It is logged as `train/phi`, and saved in
    checkpoints with the loss and the rows.

    The published code watches the likelihood of the task's completions, which `monitor` can name too where it is
    measured; it compares with a validation before training at first; and it lets the student write instead of
    replaying until its buffer is full, here while it is empty.

    Args:
        student: writes fresh completions.
        dataset: gives the others.
        start: the first :math:`\phi`, in [0, 1].
        increment: what it grows by.
        tolerance: by how much the loss has to be worse.
        capacity: rows that each rank keeps; the oldest go.
        monitor: the logged name of the loss.

    References:
        arXiv 2402.03898
    """

    student: RolloutSource = FromStudent()
    dataset: RolloutSource = FromDataset()
    start: UnitInterval = 0.0
    increment: UnitInterval = 0.1
    tolerance: NonNegative = 0.1
    capacity: Count = 1000
    monitor: str = "validation/forward_kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if stored := [type(source).__name__ for source in (self.student, self.dataset) if source.stored_teacher]:
            raise ConfigurationError(
                f"`AdaptiveReplay` cannot hold `{stored[0]}`: the rows of the other source have no stored scores."
            )

    @classmethod
    def examples(cls) -> tuple["AdaptiveReplay", ...]:
        return cls(FromStudent(SEVERAL), start=0.5, increment=0.3), cls(FromStudent(SEVERAL), start=1.0)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        memory: AdaptiveMemory = models.memories.of(self)
        phi = memory.phi_of(step)
        # One number for all ranks, which have seen the same validations and filled their buffers at the same steps.
        coin = float(step.uniform("adaptive replay", torch.zeros(1, dtype=torch.int64)))
        if coin >= phi:
            return self.dataset(prompts, models, step)
        if memory.buffer.filled(step) and coin >= phi * (1 - step.index / max(step.total, 1)):
            return memory.buffer.draw(prompts, step)
        fresh = self.student(prompts, models, step)
        memory.buffer.add(fresh, step)
        return replace(fresh, age=torch.zeros(len(fresh), device=fresh.input_ids.device))

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield a metric that is not measured, and validations that there are not."""
        if not setup.validates:
            yield Mistake("trainer.limit_val_batches", f"0, with `{path}`, which follows validations", "validations",
                          "Without them the student never writes more than at the start.", fatal=False)  # fmt: skip
        if self.monitor not in setup.metrics:
            yield Mistake(f"{path}.init_args.monitor", f"`{self.monitor}`", "a metric of the validation",
                          f"There are {', '.join(setup.metrics)}; `model.metrics` adds others.")  # fmt: skip

    def token_distribution(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        """Return what the run begins with."""
        return Mixture(self.student, self.dataset, self.start).token_distribution(student, teacher, step)

    def new_memory(self) -> Memory:
        """The first phi, and an empty buffer."""
        return AdaptiveMemory(self)


class AdaptiveMemory(Memory):
    """How often the student writes, and what it has written.

    Args:
        source: has the settings.
    """

    def __init__(self, source: AdaptiveReplay) -> None:
        self.source = source
        self.buffer = ReplayBuffer(source.capacity)
        self.phi = source.start
        self.compared: float | None = None
        self._window = (-1, source.start)

    def phi_of(self, step: Step) -> float:
        """A validation in the middle of an accumulation window counts from the next window on."""
        if self._window[0] != step.index:
            self._window = (step.index, self.phi)
        return self._window[1]

    def observe(self, metrics: Mapping[str, float]) -> None:
        loss = metrics.get(self.source.monitor)
        if loss is None:
            raise ConfigurationError(
                f"`AdaptiveReplay.monitor` must be a metric of the validation, got `{self.source.monitor}`; there are "
                f"{', '.join(sorted(metrics))}."
            )
        if not math.isfinite(loss):  # nothing could be compared with it ever after
            rank_zero_warn(f"`{self.source.monitor}` is {loss}: `AdaptiveReplay` takes no notice of this validation.")
        elif self.compared is None:
            self.compared = loss
        elif loss >= self.compared + self.source.tolerance:
            self.phi = min(1.0, self.phi + self.source.increment)
            self.compared = loss

    def numbers(self) -> Mapping[str, float]:
        return {"phi": self._window[1]}

    def end_step(self, *, done: bool) -> None:
        self.buffer.end_step(done=done)

    def state(self) -> State:
        return {"phi": self.phi, "compared": self.compared, "window": self._window, "buffer": self.buffer.state()}

    def restore(self, states: Sequence[State], rank: int) -> None:
        self.phi, self.compared, window = (states[0][name] for name in ("phi", "compared", "window"))
        self._window = tuple(window)
        self.buffer.restore([state["buffer"] for state in states], rank)
