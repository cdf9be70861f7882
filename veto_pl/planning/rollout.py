"""The rollout of a plan: the moments of the decode loop that need most, without the steps between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.sampling import draw_id
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.divergences import log_mixture
from veto_pl.models.modes import sampling_mode
from veto_pl.planning.observation import Phase
from veto_pl.rollouts import DecodeLoop, Sampling
from veto_pl.rollouts.capture import FEWEST_TOKENS
from veto_pl.rollouts.fixed_cache import fix_cache, fixed_columns
from veto_pl.rollouts.kv_cache import GrowingLayer, room_for
from veto_pl.rollouts.token_buffer import Draw, Drawn
from veto_pl.seams import Engine, LanguageModel, Models, RolloutSource, Sequences, Writing

REPLAYED = 0.25
"""What a kernel of a recorded sequence takes at least, of what PyTorch takes to start one: an estimate, 2 of 8 us."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of every row of a batch.

    Args:
        prompt: of the prompt.
        reference: of the task's completion.
        longest: what a sampled completion has at most, beside its own limit; None for that limit alone.
    """

    prompt: int
    reference: int
    longest: int | None = None

    def sampled(self, sampling: Sampling) -> int:
        """Return the tokens of a sampled completion."""
        return min(sampling.max_new_tokens, self.longest or sampling.max_new_tokens)


def bytes_read(writing: Writing, sizes: Mapping[str, int], lengths: Lengths) -> int:
    """Return the bytes of weights that are read while a row is written: each writer's, once for each token.

    Args:
        writing: how.
        sizes: bytes of each model, by its role.
        lengths: tokens of the row.
    """
    sampled = 0 if writing.sampling is None else lengths.sampled(writing.sampling)
    return sampled * sum(sizes[role] for role in writing.writers if sampled)


def completed(source: RolloutSource, prompts: int, lengths: Lengths) -> Sequences:
    """Return sequences of full length, as the way of writing that makes most tokens would."""

    def tokens(writing: Writing) -> int:
        sampling = writing.sampling
        return lengths.reference if sampling is None else writing.kept * lengths.sampled(sampling)

    largest = max(source.writings(), key=tokens)
    new = lengths.reference if largest.sampling is None else lengths.sampled(largest.sampling)
    return sequences(prompts * largest.kept, lengths.prompt, new, largest)


def sequences(rows: int, prompt: int, new: int, writing: Writing) -> Sequences:
    """Return sequences of the shape [rows, prompt + new], without meaningful values."""
    shape = (rows, prompt + new)
    mask = torch.ones(shape, dtype=torch.bool)
    stored = None
    if writing.stored is not None:
        told = writing.stored
        stored = TopKScores.uniform(shape, told.ids.shape[-1], told.temperature, sampled=told.sampled_logp is not None)
    return Sequences(
        input_ids=torch.zeros(shape, dtype=torch.int64),
        attention_mask=mask,
        loss_mask=mask.clone(),
        prompt_rows=torch.arange(rows),
        on_policy=torch.ones(rows, dtype=torch.bool),
        sampler_logp=None if writing.sampling is None else torch.zeros(shape),
        rewards=torch.zeros(rows),
        teacher_scores=stored,
    )


def roll_out(
    writing: Writing, models: Models, prompts: int, lengths: Lengths, phase: Phase, *, accelerator: bool = False
) -> None:
    """Run the prefill, and the steps of the first token, of the last growth of the caches and of the last token.

    The arithmetic of the other steps is the average of the first and the last, since it grows linearly. On an
    accelerator, an engine that records its steps has caches of a fixed size, which do not grow.
    """
    sampling = writing.sampling
    if sampling is None:
        return
    writers = [models.student if role == "student" else models.teacher_named(role) for role in writing.writers]
    new = lengths.sampled(sampling)
    with ExitStack() as stack:
        for model in writers:
            stack.enter_context(sampling_mode(model))
        before, engine = phase.flops, writing.engine or DecodeLoop()
        caches = _caches(engine, writers)
        recorded = accelerator and sampling.max_new_tokens >= FEWEST_TOKENS and all(map(engine.fixes_cache, writers))
        phase.flops = before  # whether an engine can run a model is tried out on one token, once in a run
        if caches is None:
            return
        columns = fixed_columns(lengths.prompt, sampling.max_new_tokens) if recorded else None
        loop = _Loop(writers, caches, _draw(writing, sampling), prompts * sampling.num_completions, columns)
        loop.read(prompts, lengths.prompt)
        counts = [phase.flops]
        kernels = phase.kernels
        for held in decode_moments(lengths.prompt, new):
            before = phase.kernels
            loop.write(held)
            counts.append(phase.flops)
        if len(counts) > 1:
            phase.flops = counts[0] + (new - 1) * (counts[1] - counts[0] + counts[-1] - counts[-2]) / 2
            phase.kernels = kernels + launches(new - 1, recorded) * (phase.kernels - before)


def launches(tokens: int, recorded: bool) -> float:
    """Return how many tokens cost as much to start kernel by kernel; recorded ones start at once after two.

    Example:
        >>> launches(102, False), launches(102, True)
        (102, 27.0)
    """
    return min(tokens, 2) + max(tokens - 2, 0) * REPLAYED if recorded else tokens


def decode_moments(prompt: int, new: int) -> list[int]:
    """Return the tokens in the caches when the first token is read, when they last grow, and when the last is read.

    Example:
        >>> decode_moments(100, 200)
        [100, 295, 298]
    """
    last = prompt + new - 2  # the last token that is drawn is not read
    return sorted({prompt, _growth(prompt, last)[-1][0], last}) if new > 1 else []


def _caches(engine: Engine, writers: Sequence[LanguageModel]) -> list[Any] | None:
    """Return an empty cache for each writer; None where the engine has memory of its own."""
    try:
        caches = [engine.new_cache(model) for model in writers]
    except ConfigurationError as error:
        raise ConfigurationError(
            f"This rollout cannot be planned. {error} Plan with `FromDataset`, or with another architecture."
        ) from error
    return None if any(cache is None for cache in caches) else caches


class _Loop:
    """The decode loop at chosen moments; its caches have as many columns as are given, or grow."""

    def __init__(
        self, writers: Sequence[LanguageModel], caches: list[Any], draw: Draw, rows: int, columns: int | None
    ) -> None:
        self.writers, self.caches, self.draw, self.rows, self.columns = writers, caches, draw, rows, columns
        self.logits: list[Tensor] = []
        self.prompt = 0

    def read(self, prompts: int, length: int) -> None:
        ids = torch.zeros(prompts, length, dtype=torch.int64)
        copies, self.prompt = self.rows // prompts, length
        self.logits = [m.next_logits(ids, None, c) for m, c in zip(self.writers, self.caches, strict=True)]
        if copies > 1:
            for held in self.caches:
                held.batch_repeat_interleave(copies)
            self.logits = [values.repeat_interleave(copies, 0) for values in self.logits]
        if self.columns is not None:
            for held in self.caches:
                fix_cache(held, self.columns, length, torch.full((1,), length))

    def write(self, held: int) -> None:
        """Draw a token, and read it with `held` tokens before it in the caches."""
        rows = torch.arange(self.rows)
        drawn = self.draw(self.logits, torch.zeros(self.rows, dtype=torch.float64), rows).ids
        position = torch.full((self.rows, 1), held)
        mask = None if self.columns is None else torch.ones(self.rows, self.columns, dtype=torch.int64)
        for i, (model, held_cache) in enumerate(zip(self.writers, self.caches, strict=True)):
            for layer in held_cache.layers if self.columns is None else ():
                _fill(layer, self.prompt, held)
            self.logits[i] = model.next_logits(drawn[:, None], mask, held_cache, position)


def _draw(writing: Writing, sampling: Sampling) -> Draw:
    """Return a function that draws tokens with the memory that the source's way to draw needs."""

    def mixed(logits: Sequence[Tensor], uniform: Tensor, rows: Tensor) -> Drawn:
        teacher_logp, student_logp = (sampling.shape(values) for values in logits)
        return Drawn(*draw_id(log_mixture(teacher_logp, student_logp, 0.5).exp(), uniform))

    def alone(logits: Sequence[Tensor], uniform: Tensor, rows: Tensor) -> Drawn:
        return Drawn(*sampling.draw(logits[0], uniform))

    return mixed if len(writing.writers) > 1 else alone


def _fill(layer: Any, prompt: int, held: int) -> None:
    """Resize a layer of a cache to `held` tokens, with the room that it would have by then."""
    present = layer.keys.shape[-2]
    if held == present:
        return
    if not isinstance(layer, GrowingLayer):
        kept = min(held, getattr(layer, "sliding_window", held))
        layer.keys, layer.values = (_sized(values, kept) for values in (layer.keys, layer.values))
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = held
        return
    room = next(room for at, room in reversed(_growth(prompt, held)) if at < held)
    if layer.room is None or layer.room[0].shape[-2] != room:
        layer.room = (_sized(layer.keys, room), _sized(layer.values, room))
    layer.keys, layer.values = (buffer[..., :held, :] for buffer in layer.room)


def _sized(values: Tensor, length: int) -> Tensor:
    return values.new_empty((*values.shape[:-2], length, values.shape[-1]))


def _growth(prompt: int, last: int) -> list[tuple[int, int]]:
    """Return, for each time a cache layer grows, the tokens that it holds and its room afterwards."""
    grown = [(prompt, room_for(prompt + 1))]
    while grown[-1][1] <= last:
        held = grown[-1][1]
        grown.append((held, room_for(held + 1)))
    return grown
