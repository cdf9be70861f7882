"""Rollouts of earlier steps, once more."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.memory import Memory, State
from veto_pl.ranks import place
from veto_pl.rollouts.sources import FromStudent, check_fraction
from veto_pl.schedules import value_at
from veto_pl.seams import RolloutSource, Schedule, Task
from veto_pl.types import Example, Models, PromptBatch, Sequences, Step, pad_left, pad_right


@dataclass(frozen=True)
class Replay(RolloutSource):
    """Generation is dear, so some steps train on rollouts of earlier steps. Their sampler's log-probabilities are kept.

    Rows that are replayed are not `on_policy`: an older student wrote them. The buffer is in checkpoints.

    Args:
        source: writes fresh completions.
        fraction: probability that a step trains on the buffer, a number in [0, 1] or a schedule. The first steps, with
            an empty buffer, are always fresh.
        capacity: rows that each rank keeps; the oldest go.

    References:
        arXiv 2402.03898, section 3.2 (an adaptive fraction is a schedule's business)
    """

    source: RolloutSource = FromStudent()
    fraction: float | Schedule = 0.5
    capacity: int = 1024

    def __post_init__(self) -> None:
        check_fraction("Replay.fraction", self.fraction)
        if self.capacity < 1:
            raise ConfigurationError(f"`Replay.capacity` must be at least 1, got {self.capacity}.")
        if self.source.stored_teacher:
            raise ConfigurationError(
                f"`Replay.source` cannot be `{type(self.source).__name__}`, whose rows come from a file anyway."
            )

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        buffer = models.memories.of(self, lambda: ReplayBuffer(self.capacity))
        # One coin for all ranks, which have filled their buffers at the same steps.
        coin = float(step.uniform("replay", torch.zeros(1, dtype=torch.int64)))
        if buffer.filled and coin < value_at(self.fraction, step.index, step.total):
            return buffer.draw(prompts, step)
        fresh = self.source(prompts, models, step)
        buffer.add(fresh)
        return fresh


@dataclass(frozen=True, eq=False)
class Kept:
    """A row of the buffer, without padding and on the CPU.

    Args:
        prompt_ids: [P] int64.
        completion_ids: [C] int64.
        sampler_logp: [C] float32, zeros where nobody sampled.
        number: of the prompt in its split.
        prompt: the example's prompt.
        completion: its reference.
        row: its fields; what is no plain value is kept as its `repr`.
    """

    prompt_ids: Tensor
    completion_ids: Tensor
    sampler_logp: Tensor
    number: int
    prompt: str
    completion: str | None
    row: Mapping[str, Any]

    @property
    def example(self) -> Example:
        """What the task gave."""
        return Example(self.prompt, self.completion, self.row)


class ReplayBuffer(Memory):
    """The last rows that were written.

    Args:
        capacity: how many.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.filled = False
        self._rows: list[Kept] = []
        self._fresh: list[Kept] = []
        self._asked = False

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, sequences: Sequences) -> None:
        """Keeps rows from the next optimizer step on."""
        self._asked = True
        self._fresh += kept_rows(sequences)

    def draw(self, prompts: PromptBatch, step: Step) -> Sequences:
        """As many rows as there are prompts, or all there are, each once; `prompts` names the task and the device."""
        order = torch.randperm(len(self._rows), generator=step.generator("replay"))[: len(prompts)]
        return as_sequences([self._rows[i] for i in order.tolist()], prompts.task, prompts.input_ids.device)

    def end_step(self, *, done: bool) -> None:
        if done:
            self._rows = (self._rows + self._fresh)[-self.capacity :]
            self.filled |= self._asked
        self._fresh, self._asked = [], False

    def state(self) -> State:
        return {"rows": [asdict(row) for row in self._rows], "filled": self.filled}

    def restore(self, states: Sequence[State], rank: int) -> None:
        ranks = place()[1]
        everything = [row for state in states for row in state["rows"]]
        mine = states[rank]["rows"] if len(states) == ranks else everything[rank::ranks]
        self._rows = [Kept(**row) for row in mine][-self.capacity :]
        self.filled = any(state["filled"] for state in states)


def kept_rows(sequences: Sequences) -> list[Kept]:
    """The rows of a rollout, one by one."""
    assert sequences.prompts is not None, "every source names the prompts that it has completed"
    logp = sequences.sampler_logp
    columns = [sequences.input_ids, sequences.attention_mask, sequences.loss_mask]
    ids, attended, counted = (column.cpu() for column in columns)
    scores = torch.zeros(ids.shape) if logp is None else logp.cpu().float()
    rows = []
    for i, prompt in enumerate(sequences.prompt_rows.tolist()):
        example = sequences.prompts.examples[prompt] if sequences.prompts.examples else Example("")
        rows.append(
            Kept(
                prompt_ids=ids[i, attended[i] & ~counted[i]].clone(),
                completion_ids=ids[i, counted[i]].clone(),
                sampler_logp=scores[i, counted[i]].clone(),
                number=int(sequences.prompts.numbers[prompt]),
                prompt=example.prompt,
                completion=example.completion,
                row=_plain(dict(example.row)),
            )
        )
    return rows


def as_sequences(rows: Sequence[Kept], task: Task | None, device: torch.device) -> Sequences:
    """The rows as a rollout with prompts of its own."""
    prompt_ids, prompt_mask = pad_left([row.prompt_ids for row in rows])
    ids, mask = pad_right([row.completion_ids for row in rows])
    logp, _ = pad_right([row.sampler_logp for row in rows])
    numbers = torch.tensor([row.number for row in rows], dtype=torch.int64)
    none = torch.zeros(len(rows), 0, dtype=torch.int64)
    examples = tuple(row.example for row in rows)
    prompts = PromptBatch(prompt_ids, prompt_mask, none, none.bool(), examples, task, numbers).to(device)
    before = torch.zeros(prompt_ids.shape, device=device)
    moved = ids.to(device), mask.to(device)
    return Sequences.join(prompts, *moved, sampler_logp=torch.cat([before, logp.to(device)], 1))


def _plain(value: Any) -> Any:
    """Only what a checkpoint can hold without a pickle."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
