"""Prompts: what a rollout reads, each field with its shape.

Legend: `B` rows, `P` prompt tokens, `C` completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from veto_pl.core.transfer import sent
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams.data import Example, Task, Template
from veto_pl.seams.media import Media

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completed(Protocol):
    """What is asked of rows that are judged; `Sequences` says what it means."""

    @property
    def input_ids(self) -> Tensor:
        """Return [B, T] int64."""
        ...

    @property
    def prompt_rows(self) -> Tensor:
        """Return [B] int64."""
        ...

    @property
    def rewards(self) -> Tensor | None:
        """Return [B] float32, NaN where nobody has scored, or None."""
        ...

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return what is judged of each completion."""
        ...

    def last_rows(self) -> list[int]:
        """Return for each row the last one of its episode."""
        ...

    def with_fields(self, **fields: Any) -> Any:
        """Return the same rows with other fields."""
        ...


Rows = TypeVar("Rows", bound=Completed)


@dataclass(frozen=True)
class PromptBatch:
    """Templated and tokenised prompts, left-padded, with the reference completions, right-padded.

    Args:
        input_ids: [B, P] int64.
        attention_mask: [B, P] bool.
        completion_ids: [B, C] int64, EOS included; C may be 0.
        completion_mask: [B, C] bool.
        examples: B rows as the task gave them.
        task: scores completions of these rows; None where nothing can be scored.
        template: made the prompts' texts; None where nobody can make others.
        numbers: [B] int64, the place of each row in its split, which its random numbers depend on; None counts the rows
            of the batch.
        completion_turns: [B, C] int64, for references of which not all counts: k on the tokens of the k-th turn that is
            trained on, 0 on all others; None where the whole of each reference counts.
        following: the batches that are still to come in the accumulation window, on the CPU.
        media: the images of B rows; None where no row has any.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    examples: tuple[Example, ...] = ()
    task: Task | None = None
    numbers: Tensor = None  # type: ignore[assignment]  # filled in below
    template: Template | None = None
    completion_turns: Tensor | None = None
    following: tuple[PromptBatch, ...] = ()
    media: Media | None = None

    def __post_init__(self) -> None:
        if cast("Tensor | None", self.numbers) is None:
            object.__setattr__(self, "numbers", torch.arange(len(self), device=self.input_ids.device))

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptBatch:
        """Return the same batch with its tensors on `device`; `non_blocking` is that of `Tensor.to`, and meant for
        pinned memory anyway.
        """
        tensors = self._tensors()
        moved = {name: t.to(device, non_blocking=non_blocking or t.is_pinned()) for name, t in tensors.items()}
        media = None if self.media is None else self.media.to(device, non_blocking)
        there = replace(self, media=media, **cast("dict[str, Any]", moved))
        if _is_on_host(self):
            vars(there)["on_host"] = self  # as if it had been asked for
        return there

    def pin_memory(self) -> PromptBatch:
        """Return the same batch in pinned memory; loaders of runs on a GPU ask for it."""
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, media=None if self.media is None else self.media.pin_memory(), **pinned)

    @cached_property
    def on_host(self) -> PromptBatch:
        """The same batch on the host. A batch that came from there has it still, and no device is asked."""
        return self if _is_on_host(self) else self.to("cpu")

    def rows(self, index: Tensor) -> PromptBatch:
        """Return the rows that `index` ([K] int64, on the host or the device) names, in that order, repeats allowed."""
        numbers, there = index.cpu(), sent(index, self.input_ids.device)
        examples = tuple(self.examples[i] for i in numbers.tolist()) if self.examples else ()
        taken: dict[str, Any] = {name: tensor[there] for name, tensor in self._tensors().items()}
        media = None if self.media is None else self.media.rows(numbers.tolist())
        part = replace(self, examples=examples, media=media, **taken)
        if "on_host" in vars(self) and not _is_on_host(self):
            vars(part)["on_host"] = self.on_host.rows(numbers)
        return part

    @staticmethod
    def concatenate(parts: Sequence[PromptBatch]) -> PromptBatch:
        """Stack the rows of batches of one task, padded to the widest, prompts on the left and references behind."""
        columns: dict[str, Any] = {}
        turns = any(part.completion_turns is not None for part in parts)
        for name in (*_PROMPT_TENSORS, *(["completion_turns"] if turns else [])):
            values = [part._tensors(turns=turns)[name] for part in parts]
            room = [max(value.shape[-1] for value in values) - value.shape[-1] for value in values]
            if values[0].dim() == 2:
                behind = name.startswith("completion")
                values = [pad(v, (0, n) if behind else (n, 0)) for v, n in zip(values, room, strict=True)]
            columns[name] = torch.cat(values)
        examples = tuple(example for part in parts for example in part.examples)
        media = Media.concatenate([(part.media, len(part)) for part in parts])
        whole = replace(parts[0], examples=examples, following=(), media=media, **columns)
        if not _is_on_host(whole) and all("on_host" in vars(part) for part in parts):
            vars(whole)["on_host"] = PromptBatch.concatenate([part.on_host for part in parts])
        return whole

    def _tensors(self, *, turns: bool = False) -> dict[str, Tensor]:
        """Return the tensors by name, with `turns` those of `completion_turns` in any case."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _PROMPT_TENSORS}
        if self.completion_turns is not None:
            tensors["completion_turns"] = self.completion_turns
        elif turns:
            tensors["completion_turns"] = self.completion_mask.long()
        return tensors

    def refuse_images(self, why: str, instead: str) -> None:
        """Raise `ConfigurationError` where a row has an image: `why` that cannot be, and what to do `instead`."""
        if self.media is not None and self.media.has_images:
            raise ConfigurationError(f"{why}, and a row has an image. {instead}")

    @property
    def stop(self) -> tuple[str, ...]:
        """Return the strings that end a completion of the task; none without a task."""
        return () if self.task is None else self.task.stop

    def score(self, completions: Sequence[str], rows: Sequence[int]) -> list[float]:
        """Return the task's reward of each completion, 0 without a task; `rows` names the prompt of each completion."""
        if self.task is None:
            return [0.0] * len(completions)
        return self.task.rewards([self.examples[i] for i in rows], completions)

    def rewarded(self, sequences: Rows, tokenizer: PreTrainedTokenizerBase, *, required: bool = False) -> Rows:
        """Return the same sequences with a reward of each in `rewards`, [B] float32.

        A reward that is there stays, as that of an environment. The others are the task's, of the last row of each
        episode.

        Raises:
            ConfigurationError: with `required`, an episode has no reward, and the task tells no completions apart.
        """
        last, known = sequences.last_rows(), sequences.rewards
        scores = [math.nan] * len(last) if known is None else known.tolist()
        unscored = sorted({row for row, score in zip(last, scores, strict=True) if math.isnan(score)})
        if required and unscored and self.task is not None and not self.task.judges:
            raise ConfigurationError(
                f"The objective learns from rewards, but {len(unscored)} of {len(set(last))} completions have none: no "
                "environment gave one, and the task has no verifier. Let `Episode.reward` return a number, or set "
                "`data.reward`, for instance to `ExactMatch`, which judges the last turn."
            )
        texts, prompts = sequences.texts(tokenizer), sequences.prompt_rows.tolist()
        judged = self.score([texts[row] for row in unscored], [prompts[row] for row in unscored])
        of_last = dict(zip(unscored, judged, strict=True))
        scores = [of_last[row] if math.isnan(score) else score for row, score in zip(last, scores, strict=True)]
        rewards = sent(torch.tensor(scores, dtype=torch.float32), sequences.input_ids.device)
        rewarded: Rows = sequences.with_fields(rewards=rewards)
        return rewarded


def _is_on_host(batch: PromptBatch) -> bool:
    return batch.input_ids.device.type == "cpu"


_PROMPT_TENSORS = ("input_ids", "attention_mask", "completion_ids", "completion_mask", "numbers")
