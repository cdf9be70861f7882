"""Prompts with completions: what a rollout gives, each field with its shape.

Legend: `B` rows, `P` prompt tokens, `C` completion tokens, `T` tokens of a whole row, `S = T - 1` predictions of a row,
`N` completion tokens of a batch, `V` vocabulary, `D` width. Position `t` of a row predicts token `t + 1`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.core.transfer import sent
from veto_pl.seams.ending import Ending
from veto_pl.seams.prompts import PromptBatch
from veto_pl.seams.row_fields import PER_ROW, PER_TOKEN, WHOLE, layout, stacked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


COUNT_PER_ROW = {**PER_ROW, "absent": lambda part: torch.zeros_like(part.prompt_rows)}
"""Metadata of a number of each row that is 0 where nobody has counted."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with completions, whoever wrote them. Any padding layout: only the masks say what is what.

    What was written and what counts are two things: `completion_mask` has every token behind the prompt, and
    `loss_mask` those of them that are trained on.

    Args:
        input_ids: [B, T] int64.
        attention_mask: [B, T] bool, False on padding.
        loss_mask: [B, T] bool, True on the completion's tokens that count, EOS included.
        prompt_rows: [B] int64, the row of the prompt batch that each row continues.
        on_policy: [B] bool, True where the student (or a mixture that holds it) sampled the row.
        sampler_logp: [B, T] float32, log-probability of each completion token under the sampling distribution
            (temperature and truncation included), 0 elsewhere; None where nobody sampled.
        rewards: [B] float32, NaN on rows that nobody has scored yet; None where nothing was scored.
        prompts: the batch that `prompt_rows` points into, with the examples; it is not sliced with the rows.
        by_teacher: [B, T] bool, True on completion tokens that the teacher wrote into a text of the student's; None
            where nobody takes turns.
        age: [B] float32, optimizer steps since the row was written; None where all are fresh.
        teacher_scores: [B, T] what a stored teacher says about each completion token (at the token's own position, not
            at the one that predicts it), or None where a live teacher has to be asked.
        ending: [B] int64, an `Ending`: why each completion ends; None where nobody has said.
        unjudged: [B] int64, characters at the end of each text that belong to a stop string or follow it; None for 0.
        engine_log_ratio: [B, T] float32, log-probability of each completion token by the trainer's own arithmetic minus
            that of the engine that sampled it (`sampler_logp`), both under the sampling distribution, 0 elsewhere; None
            where the trainer's own arithmetic has sampled.
        unanswered: [B] bool, True on rows that no teacher behind a server has scored, which nothing is trained on; None
            where all are answered.
        turn_ids: [B, T] int64, 0 on what is read first and on padding, k >= 1 on the agent's k-th turn and on the reply
            to it, never falling in a row; None where every completion is one turn.
        episodes: [B] int64, equal on rows that are turns of one episode, which follow one another in the order of their
            turns; None where every row is an episode.
        failed_turns: [B] int64, how many turns of the row could not be carried out; None where there is no environment.
        late_turns: [B] int64, how often the environment did not answer in time; None where there is none.
    """

    input_ids: Tensor = field(metadata=PER_TOKEN)
    attention_mask: Tensor = field(metadata=PER_TOKEN)
    loss_mask: Tensor = field(metadata=PER_TOKEN)
    prompt_rows: Tensor = field(metadata=PER_ROW)
    on_policy: Tensor = field(metadata=PER_ROW)
    sampler_logp: Tensor | None = field(default=None, metadata=PER_TOKEN)
    rewards: Tensor | None = field(
        default=None,
        metadata={**PER_ROW, "absent": lambda part: torch.full_like(part.prompt_rows, math.nan, dtype=torch.float32)},
    )
    prompts: PromptBatch | None = field(default=None, metadata=WHOLE)
    by_teacher: Tensor | None = field(
        default=None, metadata={**PER_TOKEN, "absent": lambda part: torch.zeros_like(part.loss_mask)}
    )
    age: Tensor | None = field(
        default=None,
        metadata={**PER_ROW, "absent": lambda part: torch.zeros_like(part.prompt_rows, dtype=torch.float32)},
    )
    teacher_scores: TopKScores | None = field(default=None, metadata=PER_TOKEN)
    ending: Tensor | None = field(
        default=None, metadata={**PER_ROW, "absent": lambda part: torch.full_like(part.prompt_rows, Ending.UNKNOWN)}
    )
    unjudged: Tensor | None = field(default=None, metadata=COUNT_PER_ROW)
    engine_log_ratio: Tensor | None = field(
        default=None,
        metadata={**PER_TOKEN, "absent": lambda part: torch.zeros_like(part.loss_mask, dtype=torch.float32)},
    )
    unanswered: Tensor | None = field(
        default=None, metadata={**PER_ROW, "absent": lambda part: torch.zeros_like(part.on_policy)}
    )
    turn_ids: Tensor | None = field(
        default=None, metadata={**PER_TOKEN, "absent": lambda part: part.completion_mask.long()}
    )
    episodes: Tensor | None = field(
        default=None,
        metadata={
            **PER_ROW,
            "numbers": True,
            "absent": lambda part: torch.arange(len(part), device=part.prompt_rows.device),
        },
    )
    failed_turns: Tensor | None = field(default=None, metadata=COUNT_PER_ROW)
    late_turns: Tensor | None = field(default=None, metadata=COUNT_PER_ROW)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def predictions(self) -> Tensor:
        """Return [B, S] bool with S = T - 1: the positions whose next token counts.

        The last prompt position is the first of them.
        """
        return self.loss_mask[:, 1:]

    @property
    def position_ids(self) -> Tensor:
        """Return [B, T] int64 positions that ignore padding on either side."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)

    @cached_property
    def host_masks(self) -> Tensor:
        """[2, B, T] bool on the host: `attention_mask` and `loss_mask`; fetched once, together, where unknown there."""
        return torch.stack([self.attention_mask, self.loss_mask]).cpu()

    @cached_property
    def prediction_index(self) -> Tensor:
        """[N] int64 where `predictions` is True in the flattened [B, S], row by row."""
        return sent(self.host_masks[1, :, 1:].flatten().nonzero()[:, 0], self.input_ids.device)

    def with_fields(self, **fields: Any) -> Sequences:
        """Return the same rows with other `fields`; what the host knows of masks that stay, it still knows."""
        changed = replace(self, **fields)
        if "host_masks" in vars(self) and not {"attention_mask", "loss_mask"} & fields.keys():
            vars(changed)["host_masks"] = self.host_masks
        return changed

    def token_ids(self) -> Tensor:
        """Return [N] int64: the tokens that count, row by row."""
        return self.input_ids[:, 1:].flatten()[self.prediction_index]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Return [N] and [N] int64: the tokens that count, and the row of each."""
        return self.token_ids(), self.prediction_index // max(self.predictions.shape[1], 1)

    def sampled_logp(self) -> Tensor | None:
        """Return `sampler_logp` at the S = T - 1 predicting positions, [B, S]; None where nobody sampled."""
        return None if self.sampler_logp is None else self.sampler_logp[:, 1:]

    @property
    def completion_mask(self) -> Tensor:
        """Return [B, T] bool: what was written behind the prompt, whether it counts or not.

        In a row that is a later turn of an episode it stands behind all that the agent has read.
        """
        if self.turn_ids is not None:
            return self.attention_mask & (self.turn_ids > 0)
        if self.prompts is None:  # nobody knows where the prompt ends; what counts is no part of it
            behind = self.loss_mask.cumsum(1) > 0
        else:
            lengths = self.prompts.attention_mask.sum(1)[self.prompt_rows]
            behind = self.attention_mask.cumsum(1) > lengths[:, None]
        return self.attention_mask & behind

    def completions(self) -> list[Tensor]:
        """Return the ids of each row's completion, [C_i] int64 without padding, whether they count or not."""
        return [ids[mask] for ids, mask in zip(self.input_ids, self.completion_mask, strict=True)]

    def completion_ids(self) -> list[list[int]]:
        """Return the same as numbers of the host, which fetches all rows at once."""
        return self._ids_where(self.completion_mask)

    def read_ids(self) -> list[list[int]]:
        """Return on the host what each row reads in front of its completion: its prompt, and more in a dialogue."""
        return self._ids_where(self.attention_mask & ~self.completion_mask)

    def _ids_where(self, mask: Tensor) -> list[list[int]]:
        ids, chosen = torch.stack([self.input_ids, mask.long()]).cpu()
        return [row[there].tolist() for row, there in zip(ids, chosen.bool(), strict=True)]

    @property
    def answer_mask(self) -> Tensor:
        """Return [B, T] bool: what is judged of each row, the last turn of its completion."""
        written = self.completion_mask
        if self.turn_ids is None or not self.turn_ids.numel():
            return written
        return written & (self.turn_ids == self.turn_ids.amax(1, keepdim=True))

    def last_rows(self) -> list[int]:
        """Return for each row the last one of its episode, whose text is judged."""
        numbers = range(len(self)) if self.episodes is None else self.episodes.tolist()
        last = {number: row for row, number in enumerate(numbers)}
        return [last[number] for number in numbers]

    def finished(self, eos_ids: Iterable[int]) -> Tensor:
        """Return [B] bool: the completions that ended by themselves, with EOS or a stop string.

        Args:
            eos_ids: where nobody has said why a completion ends, it is finished if its last token is one of these.
        """
        written = self.completion_mask
        places = torch.arange(written.shape[1], device=written.device)
        last = places.masked_fill(~written, -1).amax(1) if written.shape[1] else places.new_full((len(self),), -1)
        token = self.input_ids.gather(1, last.clamp_min(0)[:, None]) if written.shape[1] else last[:, None]
        ends = [token[:, 0] == end for end in eos_ids]
        read = torch.stack(ends).any(0) & (last >= 0) if ends else torch.zeros_like(last, dtype=torch.bool)
        return read if self.ending is None else torch.where(self.ending == Ending.UNKNOWN, read, self.ending > 0)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return what is judged and shown of each completion: no special tokens, nothing from a stop string on.

        Of several turns it is the last one.
        """
        completions = self._ids_where(self.answer_mask)
        if not completions:  # decoding no rows at all gives one empty text
            return []
        if self.ending is not None:  # an EOS need not be a special token
            ends = (self.ending == Ending.EOS).tolist()
            completions = [ids[:-1] if end else ids for ids, end in zip(completions, ends, strict=True)]
        texts: list[str] = tokenizer.batch_decode(completions, skip_special_tokens=True)
        behind = [0] * len(texts) if self.unjudged is None else self.unjudged.tolist()
        return [text[: max(len(text) - extra, 0)] for text, extra in zip(texts, behind, strict=True)]

    @staticmethod
    def join(
        repeated: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        *,
        host_mask: Tensor | None = None,
        **fields: Any,
    ) -> Sequences:
        """Put completions behind prompts, one each.

        Args:
            repeated: B prompts.
            completion_ids: [B, C] int64, right-padded.
            completion_mask: [B, C] bool.
            host_mask: the same as `completion_mask` on the host; None where that is not known there.
            fields: replace the other defaults.
        """
        rows = torch.arange(len(repeated), device=repeated.input_ids.device)
        joined = Sequences(
            input_ids=torch.cat([repeated.input_ids, completion_ids], 1),
            attention_mask=torch.cat([repeated.attention_mask, completion_mask], 1),
            loss_mask=torch.cat([torch.zeros_like(repeated.attention_mask), completion_mask], 1),
            prompt_rows=rows,
            on_policy=torch.zeros_like(rows, dtype=torch.bool),
            prompts=repeated,
        )
        if host_mask is not None:
            before = repeated.on_host.attention_mask
            whole = [torch.cat(pair, 1) for pair in ((before, host_mask), (torch.zeros_like(before), host_mask))]
            vars(joined)["host_masks"] = torch.stack(whole)
        return joined.with_fields(**fields)

    @staticmethod
    def concatenate(parts: Sequence[Sequences]) -> Sequences:
        """Stack the rows of all parts of one prompt batch, right-padded; drop a field that one part cannot have.

        Episodes of different parts are different ones.
        """
        columns: dict[str, Any] = {name: stacked(name, how, parts) for name, how in layout(type(parts[0])).items()}
        return replace(parts[0], **columns)

    def rows(self, index: Tensor) -> Sequences:
        """Return the rows that `index` ([K] int64, or [B] bool) selects; one on the host makes nobody wait."""
        values, there = {name: getattr(self, name) for name in layout(type(self))}, sent(index, self.input_ids.device)
        taken: dict[str, Any] = {name: None if value is None else value[there] for name, value in values.items()}
        chosen = replace(self, **taken)
        if "host_masks" in vars(self) and index.device.type == "cpu":
            vars(chosen)["host_masks"] = self.host_masks[:, index]
        return chosen

    def counting(self, kept: Tensor) -> Sequences:
        """Return the same rows, of whose N tokens that count only those still do that are `kept` ([N] bool, host)."""
        masks = self.host_masks.clone()
        predicted = masks[1, :, 1:]
        predicted[predicted.clone()] = kept
        counting = replace(self, loss_mask=sent(masks[1], self.input_ids.device))
        vars(counting)["host_masks"] = masks
        return counting

    def continuing(self, prompts: PromptBatch, rows: Tensor) -> Sequences:
        """Return the same sequences as part of the larger batch `prompts`.

        They were given its rows `rows` ([K] int64) as their own prompts.
        """
        return replace(self, prompts=prompts, prompt_rows=rows[self.prompt_rows])

    def of_part(self, start: int, prompts: PromptBatch) -> Sequences:
        """Return the rows that continue `prompts`, which are the rows from `start` on of the batch that was completed.

        Columns that are padding in all of them are left out.
        """
        place = self.prompt_rows.cpu() - start
        index = ((place >= 0) & (place < len(prompts))).nonzero()[:, 0]
        masks = self.host_masks[:, index]
        used = masks[0].any(0).nonzero()[:, 0].tolist()
        columns = slice(used[0], used[-1] + 1) if used else slice(0, prompts.input_ids.shape[1])
        rows = replace(self, prompt_rows=self.prompt_rows - start, prompts=prompts)
        rows = rows.rows(sent(index, self.input_ids.device))
        grids = {n: getattr(rows, n) for n, how in layout(type(self)).items() if how["axes"] == PER_TOKEN["axes"]}
        cut: dict[str, Any] = {name: grid[:, columns] for name, grid in grids.items() if grid is not None}
        part = replace(rows, **cut)
        vars(part)["host_masks"] = masks[:, :, columns]
        return part

    def in_prompt_order(self) -> Sequences:
        """Return the rows in the order of the prompt batch; the completions of one prompt keep theirs."""
        return self.rows(self.prompt_rows.argsort(stable=True))
