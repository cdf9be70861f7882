"""Rollouts of earlier steps, once more."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.bounds import Count, UnitInterval
from veto_pl.core.memory import Memory, State
from veto_pl.core.ranks import rank_and_size
from veto_pl.core.sampling import SEVERAL
from veto_pl.exceptions import ConfigurationError
from veto_pl.parts.schedules import value_at
from veto_pl.rollouts.sources import FromDataset, FromStudent
from veto_pl.seams import (
    Ending,
    Example,
    Models,
    PromptBatch,
    RolloutSource,
    Schedule,
    Sequences,
    Step,
    pad_left,
    pad_right,
)


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


@dataclass(frozen=True, eq=False)
class StoredRow:
    """A row of the buffer, without padding and on the CPU.

    Args:
        prompt_ids: [P] int64.
        completion_ids: [C] int64, all that was written, whether it counts or not.
        sampler_logp: [C] float32, zeros where nobody sampled.
        number: of the prompt in its split.
        prompt: the example's prompt.
        completion: its reference.
        row: its fields; what is no plain value is kept as its `repr`.
        written: the optimizer step that it was written at; checkpoints of older versions do not tell, and their rows
            count as written at the start of the run.
        counted: [C] bool, the tokens that count; None for all.
        by_teacher: [C] bool, the tokens that the teacher wrote into the student's text; None where nobody took turns.
        ending: why the completion ends, an `Ending`.
        unjudged: characters at the end of its text that belong to a stop string or follow it.
        alternatives: the example's other references.
        engine_log_ratio: [C] float32, by how much the trainer's arithmetic and the engine's differed at the time, as
            in `Sequences`; None where the trainer's own has sampled, and in checkpoints of older versions.
    """

    prompt_ids: Tensor
    completion_ids: Tensor
    sampler_logp: Tensor
    number: int
    prompt: str
    completion: str | None
    row: Mapping[str, Any]
    written: int = 0
    counted: Tensor | None = None
    by_teacher: Tensor | None = None
    ending: int = Ending.UNKNOWN
    unjudged: int = 0
    alternatives: Sequence[str] = ()
    engine_log_ratio: Tensor | None = None

    @property
    def example(self) -> Example:
        """Return the example as the task gave it."""
        return Example(self.prompt, self.completion, self.row, tuple(self.alternatives))

    @property
    def counts(self) -> Tensor:
        """Return [C] bool: the tokens that count."""
        return torch.ones_like(self.completion_ids, dtype=torch.bool) if self.counted is None else self.counted

    @property
    def taught(self) -> Tensor:
        """Return [C] bool: the tokens that the teacher wrote into the student's text."""
        return torch.zeros_like(self.counts) if self.by_teacher is None else self.by_teacher

    @property
    def gap(self) -> Tensor:
        """Return [C] float32: the trainer's log-probability of each token minus the engine's, when it was written."""
        return torch.zeros_like(self.sampler_logp) if self.engine_log_ratio is None else self.engine_log_ratio


Group = tuple[StoredRow, ...]
"""The completions of one prompt that were written together: what compares them finds them together again."""


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


def group_by_prompt(sequences: Sequences, written: int) -> list[Group]:
    """Group the rows of a rollout that was written at the optimizer step `written` by their prompts."""
    assert sequences.prompts is not None, "every source names the prompts that it has completed"
    attended, behind = sequences.attention_mask.cpu(), sequences.completion_mask.cpu()
    ids, numbers = sequences.input_ids.cpu(), sequences.prompts.numbers.tolist()
    grids = {"completion_ids": ids, "counted": sequences.loss_mask.cpu(), "sampler_logp": torch.zeros(ids.shape)}
    if sequences.sampler_logp is not None:
        grids["sampler_logp"] = sequences.sampler_logp.cpu().float()
    grids |= {name: grid.cpu() for name in PERHAPS if (grid := getattr(sequences, name)) is not None}
    columns = {"ending": sequences.ending, "unjudged": sequences.unjudged}
    told = {name: column.tolist() for name, column in columns.items() if column is not None}
    groups: dict[int, Group] = {}
    for i, prompt in enumerate(sequences.prompt_rows.tolist()):
        fields: dict[str, Any] = {name: grid[i, behind[i]].clone() for name, grid in grids.items()}
        fields |= {name: column[i] for name, column in told.items()}
        fields |= _example_fields(sequences.prompts.examples[prompt] if sequences.prompts.examples else Example(""))
        prompt_ids = ids[i, attended[i] & ~behind[i]].clone()
        row = StoredRow(prompt_ids=prompt_ids, number=numbers[prompt], written=written, **fields)
        groups[prompt] = (*groups.get(prompt, ()), row)
    return list(groups.values())


PERHAPS = ("by_teacher", "engine_log_ratio")
"""What not all rollouts have of each token."""


def _example_fields(example: Example) -> dict[str, Any]:
    """Return what is kept of an example: only what a checkpoint can hold without a pickle."""
    return {
        "prompt": example.prompt,
        "completion": example.completion,
        "row": _plain_value(dict(example.row)),
        "alternatives": list(example.alternatives),
    }


def as_sequences(groups: Sequence[Group], batch: PromptBatch) -> Sequences:
    """Return the rows as a rollout with prompts of its own; task, template and device are those of `batch`."""
    device = batch.input_ids.device
    prompt_ids, prompt_mask = pad_left([group[0].prompt_ids for group in groups])
    numbers = torch.tensor([group[0].number for group in groups], dtype=torch.int64)
    none = torch.zeros(len(groups), 0, dtype=torch.int64)
    examples = tuple(group[0].example for group in groups)
    prompts = PromptBatch(prompt_ids, prompt_mask, none, none.bool(), examples, batch.task, numbers, batch.template)
    prompts = prompts.to(device)
    rows = [row for group in groups for row in group]
    place_of = torch.tensor([i for i, group in enumerate(groups) for _ in group], dtype=torch.int64, device=device)
    ids, mask = (part.to(device) for part in pad_right([row.completion_ids for row in rows]))
    has = {name: any(getattr(row, name) is not None for row in rows) for name in PERHAPS}

    def behind(values: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        grid = pad_right(values)[0].to(device, dtype)  # no rows at all have no type of their own
        return torch.cat([grid.new_zeros(len(rows), prompt_ids.shape[1]), grid], 1)

    return Sequences.join(
        prompts.rows(place_of), ids, mask, prompts=prompts, prompt_rows=place_of,
        loss_mask=behind([row.counts for row in rows], torch.bool),
        sampler_logp=behind([row.sampler_logp for row in rows], torch.float32),
        by_teacher=behind([row.taught for row in rows], torch.bool) if has["by_teacher"] else None,
        engine_log_ratio=behind([row.gap for row in rows], torch.float32) if has["engine_log_ratio"] else None,
        ending=torch.tensor([row.ending for row in rows], dtype=torch.int64, device=device),
        unjudged=torch.tensor([row.unjudged for row in rows], dtype=torch.int64, device=device),
    )  # fmt: skip


def _plain_value(value: Any) -> Any:
    """Turn a value into what a checkpoint can hold without a pickle; other types become their `repr`."""
    if isinstance(value, dict):
        return {str(key): _plain_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
