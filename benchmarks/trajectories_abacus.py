"""Distillation of agents with the calculator `Abacus`: with the weights of SOD for the turns, and without."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trajectories_runs import Look, Seen, Size, dialogue, tokenizer_of
from trajectories_study import Study

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.environments import Abacus
from veto_pl.functional.step_weights import step_weights
from veto_pl.objectives import SOD, Distill
from veto_pl.parts.advantages import LogRatio, WithReward
from veto_pl.rollouts import Played, Sampling
from veto_pl.seams import Example, Objective

TURNS = 6
ARMS = ("SOD", "without weights")
CALL, END = '<tool_call>{"name": "calculate", "arguments": {"expression": "', '"}}</tool_call>'
SLIP, CAP = 0.15, 0.2


def played(copies: int) -> Played:
    return Played(
        Abacus(), Sampling(temperature=1.0, max_new_tokens=8, num_completions=copies), max_turns=TURNS, max_tokens=96
    )


COPIES = 8
"""Completions of each prompt."""


def study(_: Path) -> Study:
    """Sums of four numbers, such as `7+8-3+9=`; what is left of an operator is a number from 0 to 40."""
    return Study(
        "abacus", tokenizer(), partial(expert, slips=SLIP), partial(expert, slips=0.0), asked, arms(), look_of,
        teacher=Size(width=64, steps=300, rows=1000), student=Size(width=64, steps=55, rows=300),
        room=128, batch=4, rate=2e-3, held_out=150, updates=30,
    )  # fmt: skip


def asked(number: int) -> Example:
    return Example(sum_of(number), str(steps(number)[-1][1]))


def steps(number: int) -> list[tuple[str, int]]:
    """What is calculated one after the other, each with its value."""
    draws, found = random.Random(number), []
    value = draws.randint(1, 20)
    for _ in range(3):
        other = draws.randint(1, 20)
        operator = "+" if value - other < 0 or (value + other <= 40 and draws.random() < 0.5) else "-"
        result = value + other if operator == "+" else value - other
        found.append((f"{value}{operator}{other}", result))
        value = result
    return found


def sum_of(number: int) -> str:
    """All of it in one line."""
    first, *others = (told for told, _ in steps(number))
    return first + "".join(told.lstrip("0123456789") for told in others) + "="


def expert(number: int, slips: float) -> Example:
    """A dialogue that calculates step by step, with some calls that go wrong."""
    draws, said, own = random.Random(-1 - number), [{"role": "user", "content": sum_of(number)}], []
    for told, value in steps(number):
        while draws.random() < slips:
            wrong, error = told.rstrip("0123456789"), "Error: it has no end"
            said += [{"role": "assistant", "content": CALL + wrong + END}, {"role": "tool", "content": error}]
        own.append(len(said))
        said += [{"role": "assistant", "content": CALL + told + END}, {"role": "tool", "content": str(value)}]
    own.append(len(said))
    return dialogue([*said, {"role": "assistant", "content": said[-1]["content"]}], own)


def tokenizer():
    """Numbers, operators, and what stands before and behind an expression in a call, are a word each."""
    words = [CALL, END, *map(str, range(100)), *"+-=", "Error"]
    pieces = r'<tool_call>.*?"expression": "|"\}\}</tool_call>|\d+|[-+=]|Error|<eos>|\S'
    return tokenizer_of(words, pieces, {r"Error:[\s\S]*": "Error"}, spaced=False)


def arms() -> dict[str, Objective]:
    credit = WithReward(LogRatio(), 1.0, scale="std")
    both = SOD(rollout=played(COPIES), cap=CAP), Distill(rollout=played(COPIES), divergence=None, advantage=credit)
    return dict(zip(ARMS, both, strict=True))


def failed_calls(seen: Seen, decode: Callable[[Tensor], str]) -> Tensor:
    """[E, K] bool: the turns whose call was answered by an error."""
    rows = seen.rows
    replies = rows.turn_ids * (rows.completion_mask & ~rows.loss_mask)
    failed = [
        [decode(ids[turns == turn]).startswith("Error") for turn in range(1, TURNS + 1)]
        for ids, turns in zip(rows.input_ids, replies, strict=True)
    ]
    return torch.tensor(failed)


def slope(distance: Tensor, there: Tensor) -> float:
    """The slope of [E, K] over K within episodes, by least squares, over the turns that there are; NaN without any."""
    turn = torch.arange(distance.shape[1]).to(distance)
    count = there.sum(1, keepdim=True).clamp_min(1)
    centred = [
        (one * there - (one * there).sum(1, keepdim=True) / count) * there
        for one in (turn.expand_as(distance), distance)
    ]
    return float((centred[0] * centred[1]).sum() / centred[0].square().sum())


def weights_of(seen: Seen, ratio: Tensor) -> Tensor:
    """[N] the weight of the turn of each token."""
    rows = seen.rows
    grid = torch.zeros_like(rows.predictions, dtype=ratio.dtype).masked_scatter(rows.predictions, ratio)
    return step_weights(grid, rows.predictions, rows.turn_ids[:, 1:], rows.episodes, CAP)[rows.predictions]


def look_of(rows: list[Example]) -> Look:
    """Return how the episodes of these rows are looked at."""

    def look(module: DistillationModule, data: PromptDataModule) -> dict[str, Any]:
        seen = Seen.of(module, data, played(1), rows, seed=10**6)
        ratio = seen.log_ratio()
        sums, tokens = seen.turns(ratio.abs(), TURNS)
        there, distance = tokens > 0, (sums / tokens).nan_to_num()
        weight = seen.turns(weights_of(seen, ratio), TURNS)[0] / tokens
        failed = failed_calls(seen, module.tokenizer.decode)
        earlier = torch.cat([torch.zeros_like(failed[:, :1]), failed[:, :-1]], 1)  # the turn before
        strayed = failed.any(1, keepdim=True)
        found = {"success": seen.rows.rewards.mean(), "episodes with a failed call": strayed.float().mean()}
        found |= {"slope with": slope(distance, there & strayed), "slope without": slope(distance, there & ~strayed)}
        clean = there & (torch.arange(TURNS) > 0) & ~(earlier.cumsum(1) > 0)
        for where, turns in (("behind", there & earlier), ("elsewhere", clean)):
            found |= {f"w {where}": weight[turns].mean(), f"below 1 {where}": (weight[turns] < 1).float().mean()}
            found |= {f"d {where}": distance[turns].mean()}
        return {name: float(value) for name, value in (found | {"d first": distance[:, 0].mean()}).items()}

    return look
