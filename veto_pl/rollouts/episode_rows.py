"""Rows of tokens of episodes while these are played, and as a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.transfer import sent
from veto_pl.seams import Ending, PromptBatch, Sequences, pad_left, pad_right


@dataclass(frozen=True)
class WrittenTurn:
    """A turn that a model has written.

    Args:
        ids: its tokens.
        logp: of each, under the distribution that it was drawn from.
        gap: of each, as `Sequences.engine_log_ratio`; None where the trainer's own arithmetic has sampled.
        ending: why it ends.
        unjudged: characters at the end of its text that belong to a stop string or follow it.
    """

    ids: list[int]
    logp: list[float]
    gap: list[float] | None
    ending: Ending
    unjudged: int

    @property
    def end(self) -> int | None:
        """The id that has ended the turn; None where it has ended otherwise."""
        return self.ids[-1] if self.ending == Ending.EOS else None

    @property
    def said(self) -> list[int]:
        """The ids without the one that ends the turn."""
        return self.ids if self.end is None else self.ids[:-1]


@dataclass
class EpisodeRow:
    """A row of an episode: what the agent reads first, its turns and the replies.

    Args:
        read: the ids that it reads first; None for those of the prompt of the batch.
        prompt: the row of the prompt batch.
        episode: the number of the episode.
    """

    read: list[int] | None
    prompt: int
    episode: int
    ids: list[int] = field(default_factory=list)
    turn_ids: list[int] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    ending: Ending = Ending.UNKNOWN
    unjudged: int = 0
    failed: int = 0
    late: int = 0
    knows_gap: bool = False

    def write(self, turn: WrittenTurn, number: int) -> None:
        """Put a turn of the agent behind the row."""
        self._add(turn.ids, number, counted=True, logp=turn.logp, gap=turn.gap)
        self.ending, self.unjudged = turn.ending, turn.unjudged
        self.knows_gap = turn.gap is not None

    def hear(self, ids: Sequence[int], number: int) -> None:
        """Put the reply to turn `number` behind the row: it never counts, and nobody has sampled it."""
        self._add(ids, number, counted=False, logp=[0.0] * len(ids), gap=None)

    def _add(
        self, ids: Sequence[int], number: int, *, counted: bool, logp: Sequence[float], gap: Sequence[float] | None
    ) -> None:
        self.ids += ids
        self.turn_ids += [number] * len(ids)
        self.counted += [counted] * len(ids)
        self.logp += logp
        self.gap += [0.0] * len(ids) if gap is None else gap


def written_turns(rows: Sequences) -> Iterator[WrittenTurn]:
    """Yield what was written in each row of an engine's rollout."""
    assert rows.sampler_logp is not None, "an engine tells the log-probabilities of what it has sampled"
    mask, ids, logp = rows.completion_mask.cpu(), rows.input_ids.cpu(), rows.sampler_logp.cpu()
    gaps = None if rows.engine_log_ratio is None else rows.engine_log_ratio.cpu()
    endings = [Ending.UNKNOWN] * len(rows) if rows.ending is None else [Ending(one) for one in rows.ending.tolist()]
    unjudged = [0] * len(rows) if rows.unjudged is None else rows.unjudged.tolist()
    for i, there in enumerate(mask):
        gap = None if gaps is None else gaps[i, there].tolist()
        yield WrittenTurn(ids[i, there].tolist(), logp[i, there].tolist(), gap, endings[i], unjudged[i])


def behind_contexts(prompts: PromptBatch, of: Sequence[int], read: Sequence[Sequence[int] | None]) -> PromptBatch:
    """Return rows of prompts, each with what an agent reads there in place of its ids.

    Args:
        prompts: the batch.
        of: the row of the batch of each.
        read: the ids of each; None for those of the prompt.
    """
    rows = prompts.rows(torch.tensor(of, dtype=torch.int64))
    if all(ids is None for ids in read):
        return rows
    known = rows.on_host
    own = [ids[mask] for ids, mask in zip(known.input_ids, known.attention_mask, strict=True)]
    texts = [one if ids is None else torch.tensor(ids, dtype=torch.int64) for one, ids in zip(own, read, strict=True)]
    ids, mask = pad_left(texts)
    on_host = replace(known, input_ids=ids, attention_mask=mask)
    return on_host if rows.input_ids.device.type == "cpu" else on_host.to(rows.input_ids.device)


def as_rollout(rows: Sequence[EpisodeRow], prompts: PromptBatch, rewards: Sequence[float] | None) -> Sequences:
    """Return the rows of episodes as a rollout of the prompts, in the order that is given.

    Args:
        rows: at least one.
        prompts: the batch.
        rewards: of each row, NaN where the task is to judge; None where it judges all.
    """
    of = [row.prompt for row in rows]
    repeated = behind_contexts(prompts, of, [row.read for row in rows])
    device, before = prompts.input_ids.device, repeated.input_ids.shape[1]

    def column(values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        return sent(torch.tensor(values, dtype=dtype), device)

    def behind(values: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
        grid = pad_right([torch.tensor(line, dtype=dtype) for line in values])[0]
        return sent(torch.cat([grid.new_zeros(len(rows), before), grid], 1), device)

    ids, lived = pad_right([torch.tensor(row.ids, dtype=torch.int64) for row in rows])
    gaps = behind([row.gap for row in rows], torch.float32) if any(row.knows_gap for row in rows) else None
    return Sequences.join(
        repeated, sent(ids, device), sent(lived, device), host_mask=lived, prompts=prompts, prompt_rows=column(of),
        loss_mask=behind([row.counted for row in rows], torch.bool),
        on_policy=column([True] * len(rows), torch.bool),
        sampler_logp=behind([row.logp for row in rows], torch.float32), engine_log_ratio=gaps,
        ending=column([int(row.ending) for row in rows]), unjudged=column([row.unjudged for row in rows]),
        turn_ids=behind([row.turn_ids for row in rows], torch.int64),
        episodes=column([row.episode for row in rows]), failed_turns=column([row.failed for row in rows]),
        late_turns=column([row.late for row in rows]),
        rewards=None if rewards is None else column(rewards, torch.float32),
    )  # fmt: skip
