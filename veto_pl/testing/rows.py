"""For the laws of sources and contexts: tiny prompts, runs of a few steps, and where two rollouts differ."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veto_pl.core.memory import Memories, remembers
from veto_pl.metrics import default_metrics
from veto_pl.seams import Example, Models, PromptBatch, RolloutSource, Sequences, Step, Task
from veto_pl.seams.row_fields import layout
from veto_pl.testing.tiny import prompt_batch

PROMPTS = ("abc>", "d>", "efghij>", "ka>")
COMPLETIONS = ("cba", "d", "jihgfe", "akak")
NUMBERS = (7, 3, 12, 5)
TOTAL = 10
NOT_COMPARED = ("attention_mask", "prompt_rows", "teacher_scores", "episodes")
"""Padding, and what names other rows of a batch."""
FIELDS = tuple(name for name in layout(Sequences) if name not in NOT_COMPARED)
METRICS = tuple(f"validation/{metric.name}" for metric in default_metrics(1))


@dataclass(frozen=True)
class _EverySecondLength(Task):
    """Texts with an odd number of characters are correct, so that some completions are and some are not."""

    def load(self, split: str) -> Sequence[Example]:
        return []

    def reward(self, example: Example, completion: str) -> float:
        return float(len(completion) % 2)


def tiny_prompts(models: Models, turn: int = 0) -> PromptBatch:
    """Return four prompts with references, a task and numbers, rotated by `turn` places."""
    batch = replace(
        prompt_batch(models, PROMPTS, COMPLETIONS), task=_EverySecondLength(), numbers=torch.tensor(NUMBERS)
    )
    return batch.rows((torch.arange(len(PROMPTS)) + turn) % len(PROMPTS))


def beginning(source: RolloutSource, models: Models) -> Models:
    """Return the models with empty memories, as at the beginning of a run."""
    models = replace(models, memories=Memories())
    models.memories.claim([source])
    return models


def run(source: RolloutSource, models: Models, steps: Iterable[int]) -> Iterator[tuple[PromptBatch, Sequences]]:
    """Yield prompts and rollouts of two micro-batches per step; a validation after each step gets worse."""
    for index in steps:
        for micro in range(2):
            batch = tiny_prompts(models, index + micro)
            yield batch, source(batch, models, Step(index, TOTAL, micro=micro))
        models.memories.end_step()
        models.memories.observe(dict.fromkeys(METRICS, 1.0 + index))


def written(source: RolloutSource, models: Models) -> list[tuple[PromptBatch, Sequences]]:
    """Return prompts and rollouts of the first step, or of the first five for a source with a memory."""
    return list(run(source, beginning(source, models), range(5 if remembers(source) else 1)))


def unpadded(rows: Sequences, name: str) -> list[Tensor]:
    """Return a field of every row, without its values at padding."""
    values: Tensor = getattr(rows, name)
    if values.dim() == 1:
        return list(values)
    return [value[mask] for value, mask in zip(values, rows.attention_mask, strict=True)]


def difference(one: Sequences, other: Sequences) -> str:
    """Return the first difference of two rollouts, ignoring padding, as text; empty if there is none.

    A field that one of them does not have is not compared.
    """
    if len(one) != len(other):
        return f"{len(one)} rows, and {len(other)}"
    for name in FIELDS:
        if getattr(one, name) is None or getattr(other, name) is None:
            continue
        for row, (a, b) in enumerate(zip(unpadded(one, name), unpadded(other, name), strict=True)):
            # Other padding gives other roundings.
            if a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=0, atol=1e-4):
                return f"`{name}` of row {row} is {a.tolist()}, and {b.tolist()}"
    return ""


def contents(part: Any) -> dict[str, list[Any]]:
    """Return the tensors of sequences or prompts as lists, to compare later for changes in place."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {key: value.tolist() for key, value in values.items() if isinstance(value, Tensor)}


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python, and restore their states after the block."""
    kept, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def global_numbers() -> tuple[list[float], list[float], float]:
    """Return the next numbers of torch's, numpy's and Python's generators without advancing them."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    drawn = torch.rand(4).tolist(), np.random.random(4).tolist(), random.random()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    return drawn
