"""Rollouts of earlier steps, once more."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from veto_pl.core.bounds import Count, UnitInterval
from veto_pl.core.memory import Memory, State
from veto_pl.core.ranks import rank_and_size
from veto_pl.core.sampling import SEVERAL
from veto_pl.exceptions import ConfigurationError
from veto_pl.parts.schedules import value_at
from veto_pl.rollouts.sources import FromDataset, FromStudent
from veto_pl.rollouts.stored_rows import Group, StoredRow, as_sequences, group_by_prompt
from veto_pl.seams import Models, PromptBatch, RolloutSource, Schedule, Sequences, Step


@dataclass(frozen=True)
class Replay(RolloutSource):
    """Generation is dear, so some steps train on rollouts of earlier steps. Their sampler's log-probabilities are kept.

    So is the gap of a foreign engine to the trainer's arithmetic, as it was measured when the row was written.

    A replayed step has as many prompts as a fresh one, each with all completions that were written with it. These rows
    are not `on_policy`: an older student wrote them. Every row knows its `age` in optimizer steps, which
    `Distill.staleness_decay` turns into weights. The buffer is in checkpoints.

    Args:
        source: writes fresh completions.
        fraction: probability that a step trains on the buffer, a number in [0, 1] or a schedule. The first steps, with
            an empty buffer, are always fresh.
        capacity: rows that each rank keeps; the oldest go, those of one prompt together.
        max_age: rows that were written more optimizer steps ago are not replayed; None for no limit. A step without any
            that is young enough is fresh.

    References:
        arXiv 2402.03898, section 3.2 (an adaptive fraction is a schedule's business)
    """

    source: RolloutSource = FromStudent()
    fraction: UnitInterval | Schedule = 0.5
    capacity: Count = 1024
    max_age: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source.stored_teacher:
            raise ConfigurationError(
                f"`Replay.source` cannot be `{type(self.source).__name__}`, whose rows come from a file anyway."
            )

    @classmethod
    def examples(cls) -> tuple["Replay", ...]:
        return cls(FromStudent(SEVERAL), fraction=1.0), cls(FromDataset(), capacity=6, max_age=1)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        buffer: ReplayBuffer = models.memories.of(self)
        # One coin for all ranks, which have filled their buffers at the same steps.
        coin = float(step.uniform("replay", torch.zeros(1, dtype=torch.int64)))
        if buffer.filled(step) and coin < value_at(self.fraction, step.index, step.total):
            return buffer.draw(prompts, step)
        fresh = self.source(prompts, models, step)
        buffer.add(fresh, step)
        return replace(fresh, age=torch.zeros(len(fresh), device=fresh.input_ids.device))

    def new_memory(self) -> Memory:
        """Return an empty buffer."""
        return ReplayBuffer(self.capacity, self.max_age)


class ReplayBuffer(Memory):
    """The last completions that were written, prompt by prompt.

    Args:
        capacity: how many completions. The oldest go, all those of a prompt together; the last prompt's stay.
        max_age: optimizer steps after which a completion is not drawn any more; None for no limit.
    """

    def __init__(self, capacity: int, max_age: int | None = None) -> None:
        self.capacity, self.max_age = capacity, max_age
        self._groups: list[Group] = []
        self._fresh: list[Group] = []
        self._latest: int | None = None
        self._asked: int | None = None

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def filled(self, step: Step) -> bool:
        """Return whether some rank may have rows that are young enough: the same answer on all ranks."""
        return self._latest is not None and self._young(self._latest, step)

    def add(self, sequences: Sequences, step: Step) -> None:
        """Store rows, to be drawn from the next optimizer step on."""
        self._asked = step.index
        self._fresh += group_by_prompt(sequences, step.index)

    def draw(self, prompts: PromptBatch, step: Step) -> Sequences:
        """Draw the completions of as many prompts as there are in `prompts`, or of all there are, each once.

        `prompts` names task, template and device.
        """
        young = [group for group in self._groups if self._young(group[0].written, step)]
        order = torch.randperm(len(young), generator=step.generator("replay"))[: len(prompts)]
        drawn = as_sequences([young[i] for i in order.tolist()], prompts)
        ages = [float(step.index - row.written) for i in order.tolist() for row in young[i]]
        return replace(drawn, age=torch.tensor(ages, device=prompts.input_ids.device))

    def end_step(self, *, done: bool) -> None:
        if done:
            self._groups = self._newest(self._groups + self._fresh)
            self._latest = self._latest if self._asked is None else self._asked
        self._fresh, self._asked = [], None

    def state(self) -> State:
        return {"groups": [[asdict(row) for row in group] for group in self._groups], "latest": self._latest}

    def restore(self, states: Sequence[State], rank: int) -> None:
        ranks = rank_and_size()[1]
        # Checkpoints of older versions know single rows.
        stored = [state["groups"] if "groups" in state else [[row] for row in state["rows"]] for state in states]
        everything = [group for groups in stored for group in groups]
        mine = stored[rank] if len(states) == ranks else everything[rank::ranks]
        self._groups = self._newest([tuple(StoredRow(**row) for row in group) for group in mine])
        # Checkpoints of older versions say `filled`, and not when.
        told = [state.get("latest", 0 if state.get("filled") else None) for state in states]
        self._latest = max((latest for latest in told if latest is not None), default=None)

    def _newest(self, groups: list[Group]) -> list[Group]:
        excess, first = sum(map(len, groups)) - self.capacity, 0
        while excess > 0 and first < len(groups) - 1:
            excess -= len(groups[first])
            first += 1
        return groups[first:]

    def _young(self, written: int, step: Step) -> bool:
        return self.max_age is None or step.index - written <= self.max_age
