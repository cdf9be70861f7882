"""Rows of a rollout as they are kept: without padding, on the CPU, in plain values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veto_pl.seams import Conversation, Ending, Example, Media, Picture, PromptBatch, Sequences, pad_left, pad_right


@dataclass(frozen=True, eq=False)
class StoredRow:
    """A row of the buffer, without padding and on the CPU.

    Args:
        prompt_ids: [P] int64, what the completion was written behind.
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
        conversation: the example's, as plain values, where it is one.
        source: the data set that it comes from.
        teacher: the name of the teacher that it asks for.
        images: the example's, as plain values.
        engine_log_ratio: [C] float32, by how much the trainer's arithmetic and the engine's differed at the time, as
            in `Sequences`; None where the trainer's own has sampled, and in checkpoints of older versions.
        turn_ids: [C] int64, the agent's turn of each token; None where the completion is one turn.
        episode: equal on rows of one prompt that are turns of one episode; None where the row is one.
        reward: of the row, where it was known when the row was written.
        failed_turns: of the row; None without an environment.
        late_turns: of the row; likewise.
        media: the features of the prompt's images; None where it has none.
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
    conversation: Mapping[str, Any] | None = None
    source: str = ""
    teacher: str = ""
    images: Sequence[Mapping[str, str]] = ()
    engine_log_ratio: Tensor | None = None
    turn_ids: Tensor | None = None
    episode: int | None = None
    reward: float | None = None
    failed_turns: int | None = None
    late_turns: int | None = None
    media: Mapping[str, Tensor] | None = None

    @property
    def example(self) -> Example:
        """Return the example as the task gave it."""
        said = None if self.conversation is None else Conversation.from_plain(self.conversation)
        alternatives = tuple(self.alternatives)
        images = tuple(map(Picture.from_plain, self.images))
        return Example(self.prompt, self.completion, self.row, alternatives, said, self.source, self.teacher, images)

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

    @property
    def turns(self) -> Tensor:
        """Return [C] int64: the agent's turn of each token."""
        return torch.ones_like(self.completion_ids) if self.turn_ids is None else self.turn_ids


Group = tuple[StoredRow, ...]
"""The completions of one prompt that were written together: what compares them finds them together again."""


def group_by_prompt(sequences: Sequences, written: int) -> list[Group]:
    """Group the rows of a rollout that was written at the optimizer step `written` by their prompts."""
    assert sequences.prompts is not None, "every source names the prompts that it has completed"
    attended, behind = sequences.attention_mask.cpu(), sequences.completion_mask.cpu()
    ids, numbers = sequences.input_ids.cpu(), sequences.prompts.numbers.tolist()
    grids = {"completion_ids": ids, "counted": sequences.loss_mask.cpu(), "sampler_logp": torch.zeros(ids.shape)}
    if sequences.sampler_logp is not None:
        grids["sampler_logp"] = sequences.sampler_logp.cpu().float()
    grids |= {name: grid.cpu() for name in PERHAPS if (grid := getattr(sequences, name)) is not None}
    media = None if sequences.prompts.media is None else sequences.prompts.media.to("cpu")
    columns = {"ending": sequences.ending, "unjudged": sequences.unjudged, "episode": sequences.episodes}
    columns |= {"reward": sequences.rewards} | {name: getattr(sequences, name) for name in TURNS}
    told = {name: column.tolist() for name, column in columns.items() if column is not None}
    groups: dict[int, Group] = {}
    for i, prompt in enumerate(sequences.prompt_rows.tolist()):
        fields: dict[str, Any] = {name: grid[i, behind[i]].clone() for name, grid in grids.items()}
        fields |= {name: column[i] for name, column in told.items()}
        fields |= _example_fields(sequences.prompts.examples[prompt] if sequences.prompts.examples else Example(""))
        prompt_ids = ids[i, attended[i] & ~behind[i]].clone()
        images = None if media is None else media.of_rows[prompt] or None
        row = StoredRow(prompt_ids=prompt_ids, number=numbers[prompt], written=written, media=images, **fields)
        groups[prompt] = (*groups.get(prompt, ()), row)
    return list(groups.values())


PERHAPS = ("by_teacher", "engine_log_ratio", "turn_ids")
"""What not all rollouts have of each token."""


TURNS = ("failed_turns", "late_turns")
"""What rollouts with an environment count of each row."""


def _example_fields(example: Example) -> dict[str, Any]:
    """Return what is kept of an example: only what a checkpoint can hold without a pickle."""
    return {
        "prompt": example.prompt,
        "completion": example.completion,
        "row": _plain_value(dict(example.row)),
        "alternatives": list(example.alternatives),
        "conversation": None if example.conversation is None else _plain_value(example.conversation.plain()),
        "source": example.source,
        "teacher": example.teacher,
        "images": [image.plain() for image in example.images],
    }


def as_sequences(groups: Sequence[Group], batch: PromptBatch) -> Sequences:
    """Return the rows as a rollout with prompts of its own; task, template and device are those of `batch`."""
    device = batch.input_ids.device
    prompt_ids, prompt_mask = pad_left([group[0].prompt_ids for group in groups])
    numbers = torch.tensor([group[0].number for group in groups], dtype=torch.int64)
    none = torch.zeros(len(groups), 0, dtype=torch.int64)
    examples = tuple(group[0].example for group in groups)
    images = Media(tuple(group[0].media or {} for group in groups))
    prompts = PromptBatch(
        prompt_ids, prompt_mask, none, none.bool(), examples, batch.task, numbers, batch.template,
        media=images if images.has_images else None,
    ).to(device)  # fmt: skip
    rows = [row for group in groups for row in group]
    place_of = torch.tensor([i for i, group in enumerate(groups) for _ in group], dtype=torch.int64, device=device)
    read = prompts.rows(place_of)
    if any(not torch.equal(row.prompt_ids, group[0].prompt_ids) for group in groups for row in group):
        read_ids, read_mask = (part.to(device) for part in pad_left([row.prompt_ids for row in rows]))
        read = replace(read, input_ids=read_ids, attention_mask=read_mask)
    ids, mask = (part.to(device) for part in pad_right([row.completion_ids for row in rows]))
    has = {name: any(getattr(row, name) is not None for row in rows) for name in PERHAPS}

    def behind(values: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        grid = pad_right(values)[0].to(device, dtype)  # no rows at all have no type of their own
        return torch.cat([grid.new_zeros(len(rows), read.input_ids.shape[1]), grid], 1)

    return Sequences.join(
        read, ids, mask, prompts=prompts, prompt_rows=place_of,
        loss_mask=behind([row.counts for row in rows], torch.bool),
        sampler_logp=behind([row.sampler_logp for row in rows], torch.float32),
        by_teacher=behind([row.taught for row in rows], torch.bool) if has["by_teacher"] else None,
        engine_log_ratio=behind([row.gap for row in rows], torch.float32) if has["engine_log_ratio"] else None,
        turn_ids=behind([row.turns for row in rows], torch.int64) if has["turn_ids"] else None,
        episodes=_episodes(groups, device), rewards=_rewards(rows, device),
        **{name: _turns(name, rows, device) for name in TURNS},
        ending=torch.tensor([row.ending for row in rows], dtype=torch.int64, device=device),
        unjudged=torch.tensor([row.unjudged for row in rows], dtype=torch.int64, device=device),
    )  # fmt: skip


def _episodes(groups: Sequence[Group], device: torch.device) -> Tensor | None:
    """Return [B] int64 numbers of the rows' episodes; None where every row is one."""
    if all(row.episode is None for group in groups for row in group):
        return None
    rows = ((i, j, row) for i, group in enumerate(groups) for j, row in enumerate(group))
    keys = [(i, j if row.episode is None else row.episode) for i, j, row in rows]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys], dtype=torch.int64, device=device)


def _turns(name: str, rows: Sequence[StoredRow], device: torch.device) -> Tensor | None:
    """Return [B] int64 counts of turns, by name; None where no row came from an environment."""
    known = [getattr(row, name) for row in rows]
    return None if set(known) <= {None} else torch.tensor([count or 0 for count in known], device=device)


def _rewards(rows: Sequence[StoredRow], device: torch.device) -> Tensor | None:
    """Return [B] float32 rewards, NaN where none was known; None where none was."""
    known = [math.nan if row.reward is None else row.reward for row in rows]
    return None if all(map(math.isnan, known)) else torch.tensor(known, dtype=torch.float32, device=device)


def _plain_value(value: Any) -> Any:
    """Turn a value into what a checkpoint can hold without a pickle; other types become their `repr`."""
    if isinstance(value, dict):
        return {str(key): _plain_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
