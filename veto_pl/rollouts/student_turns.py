"""The turns of a student that others speak of: where they stand, and what was said before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.core.transfer import sent
from veto_pl.seams import PromptBatch, Sequences, pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACES = 1 << 20
"""More completions than any prompt has."""
TURNS = 1 << 11
"""More turns than any episode has."""


@dataclass(frozen=True)
class State:
    """What the student has read when a turn begins.

    Args:
        prompt: the row of the prompt batch.
        number: a number of its own, a function of the prompt's number, the completion and the turn.
        text: the prompt as the task gave it, or, where more was said, all of that as text.
        is_whole: whether the text holds all that was said.
    """

    prompt: int
    number: int
    text: str
    is_whole: bool = False


@dataclass(frozen=True)
class Turn:
    """A turn of the student that is trained on.

    Args:
        row: of the rollout.
        number: k, for the k-th turn of its episode.
        state: the place of its state in a list.
        columns: of the row, from its first token to the last one that counts.
        places: [M] int64, the tokens of the turn that count, among all that count in the rollout, row by row.
    """

    row: int
    number: int
    state: int
    columns: slice
    places: Tensor

    @property
    def length(self) -> int:
        """Return its tokens."""
        return int(self.columns.stop - self.columns.start)


def turns_of(sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> tuple[list[State], list[Turn]]:
    """Return the turns of a rollout that are trained on, row by row, and the states in front of them.

    Completions of one prompt that know no turns have the same state. Each turn of an episode has its own.

    Args:
        sequences: B rows.
        tokenizer: of the student.
    """
    assert sequences.prompts is not None, "every source names the prompts that it has completed"
    prompts, ids = sequences.prompts.on_host, sequences.input_ids.cpu()
    copies, rows = _copies(sequences), sequences.prompt_rows.tolist()
    known: dict[int, State] = {}
    order: dict[int, int] = {}
    turns = []
    for row, number, columns, places in _spans(sequences):
        prompt = rows[row]
        of_prompt = int(prompts.numbers[prompt])
        if sequences.turn_ids is None:
            state = known.setdefault(of_prompt, State(prompt, of_prompt, prompts.examples[prompt].prompt))
        else:
            own = (of_prompt * PLACES + copies[row]) * TURNS + number
            read = ids[row, : columns.start][sequences.host_masks[0, row, : columns.start]]
            text, is_whole = _said_before(read.tolist(), prompts, prompt, tokenizer)
            state = known.setdefault(own, State(prompt, own, text, is_whole))
        order.setdefault(state.number, len(order))
        turns.append(Turn(row, number, order[state.number], columns, places))
    return [*known.values()], turns


def behind_told(told: PromptBatch, turns: Sequence[Turn], of: Sequence[int], sequences: Sequences) -> Sequences:
    """Put turns behind other prompts, each in a row of its own, with what counts of them.

    Args:
        told: the prompts.
        turns: at least one.
        of: the prompt of each.
        sequences: the rollout that they are turns of.
    """
    device = sequences.input_ids.device
    ids, counted = sequences.input_ids.cpu(), sequences.host_masks[1]
    written, lived = pad_right([ids[turn.row, turn.columns] for turn in turns])
    counts, _ = pad_right([counted[turn.row, turn.columns].long() for turn in turns])
    rows = sent(torch.tensor([turn.row for turn in turns], dtype=torch.int64), device)
    index = torch.tensor(of, dtype=torch.int64)
    repeated = told.rows(index)
    before = torch.zeros_like(repeated.attention_mask)
    return Sequences.join(
        repeated, sent(written, device), sent(lived, device),
        loss_mask=torch.cat([before, sent(counts.bool(), device)], 1), prompts=told, prompt_rows=sent(index, device),
        on_policy=sequences.on_policy[rows], rewards=None if sequences.rewards is None else sequences.rewards[rows],
    )  # fmt: skip


def _spans(sequences: Sequences) -> Iterator[tuple[int, int, slice, Tensor]]:
    """Yield row, number, columns and places of every turn with a token that counts."""
    counted, written = sequences.host_masks[1], sequences.completion_mask.cpu()
    numbers = written.long() if sequences.turn_ids is None else sequences.turn_ids.cpu() * written
    order = counted.flatten().cumsum(0).view_as(counted) - 1
    for row in counted.any(1).nonzero()[:, 0].tolist():
        for number in sorted(set(numbers[row, counted[row]].tolist())):
            here = (numbers[row] == number).nonzero()[:, 0]
            kept = here[counted[row, here]]
            yield row, number, slice(int(here[0]), int(kept[-1]) + 1), order[row, kept]


def _copies(sequences: Sequences) -> list[int]:
    """Return of each row which of the episodes of its prompt it belongs to."""
    rows = sequences.prompt_rows.tolist()
    episodes = range(len(rows)) if sequences.episodes is None else sequences.episodes.tolist()
    known: dict[int, dict[int, int]] = {}
    found = []
    for prompt, episode in zip(rows, episodes, strict=True):
        of_prompt = known.setdefault(prompt, {})
        found.append(of_prompt.setdefault(episode, len(of_prompt)))
    return found


def _said_before(
    read: Sequence[int], prompts: PromptBatch, prompt: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, bool]:
    """Return the ids that stand in front of a turn as text, and whether that is more than the prompt."""
    if read == prompts.input_ids[prompt][prompts.attention_mask[prompt]].tolist():
        return prompts.examples[prompt].prompt, False
    return str(tokenizer.decode(read, skip_special_tokens=True)), True
