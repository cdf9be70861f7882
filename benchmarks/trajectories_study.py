"""A study of `trajectories.py`: models that imitate an expert, and students that learn from a teacher then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trajectories_runs import SHOWN, TALK, Finished, Look, Looks, Size, fit
from transformers import PreTrainedTokenizerBase

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.core.laws import Law
from veto_pl.models import RandomWeights
from veto_pl.models.export_folder import export_student
from veto_pl.objectives import SFT
from veto_pl.parts.schedules import Linear, WarmUp
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Example, Objective, Task

HELD_OUT = 1 << 30
"""The number of the first held-out row."""


@dataclass(frozen=True)
class Rows(Task):
    """Numbered rows.

    Args:
        of: makes the row of a number.
        train: rows to train on.
        validation: rows to look at.
        test: more of them.
        first: the number of the first training row.
    """

    of: Callable[[int], Example]
    train: int = 10_000
    validation: int = 100
    test: int = 1
    first: int = 0

    laws = Task.laws - {Law.SPLITS_ARE_APART}

    def load(self, split: str) -> Sequence[Example]:
        start = {"train": self.first, "validation": HELD_OUT, "test": 1 << 31}[split]
        return [self.of(number) for number in range(start, start + getattr(self, split))]

    def reward(self, example: Example, completion: str) -> float:
        return float(completion.strip() == example.completion)


def rows_of(task: Task, template: Any, room: int, **rest: Any) -> PromptDataModule:
    """The data of a study whose models have so many positions, a quarter of them for what is asked."""
    return PromptDataModule(task, template, max_prompt_tokens=room // 4, max_completion_tokens=room - room // 4, **rest)


def gpt2(ids: int, width: int, room: int, seed: int) -> RandomWeights:
    """Two layers, whose weights are new."""
    sizes = {"vocab_size": ids, "n_embd": width, "n_layer": 2, "n_head": 4, "n_positions": room,
             "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 1,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
    return RandomWeights("gpt2", sizes, seed=seed)


@dataclass(frozen=True)
class Study:
    """A teacher and students that imitate an expert, and what the students learn from the teacher then.

    Args:
        name: of the study.
        tokenizer: of both models.
        taught: the expert's dialogue of a number, as the teacher imitates it.
        shown: the same for students.
        asked: the row of a number that students play.
        arms: name -> what is trained on; the first one plays the teacher.
        look: takes held-out rows; returns what is seen of their episodes.
        teacher: how large it is, one for all seeds.
        student: how large one is; each seed has its own.
        room: positions of the models.
        batch: prompts of an update.
        rate: of AdamW in distillation.
        held_out: episodes of a look.
        updates: of a run, at most.
        budget: turns of the student in a run, at most.
        every: turns between two looks.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    taught: Callable[[int], Example]
    shown: Callable[[int], Example]
    asked: Callable[[int], Example]
    arms: Mapping[str, Objective]
    look: Callable[[list[Example]], Look]
    teacher: Size
    student: Size
    room: int
    batch: int
    rate: float
    held_out: int
    updates: int = 100_000
    budget: float = 10**9
    every: int = 10**9

    def run(self, done: Finished, folder: Path, seeds: Sequence[int]) -> None:
        """Run what is missing."""
        look = self.look(list(Rows(self.asked, validation=self.held_out).load("validation")))
        teacher = self.imitated(folder / f"{self.name}-teacher", self.teacher, self.taught, seed=0)
        done.add(self.name, "teacher", 0, lambda: self.looked_at(teacher, look))
        for seed in seeds:
            of, first = folder / f"{self.name}-student-{seed}", 10**6 * (seed + 1)
            student = self.imitated(of, self.student, self.shown, seed=seed + 1, first=first)
            for arm, objective in self.arms.items():
                done.add(self.name, arm, seed, partial(self.distilled, objective, student, teacher, look, seed))

    def imitated(
        self, folder: Path, size: Size, dialogues: Callable[[int], Example], *, seed: int, first: int = 0
    ) -> str:
        """Train a model on dialogues of an expert, or find it where it was exported before; returns the folder."""
        if not folder.is_dir():
            model = gpt2(len(self.tokenizer), size.width, self.room, seed)
            module = DistillationModule(
                SFT(rollout=FromDataset()), model, tokenizer=self.tokenizer, seed=seed,
                optimizer=partial(torch.optim.AdamW, lr=size.rate, weight_decay=0.0),
                lr_schedule=WarmUp(0.05, Linear(1.0, 0.0)),
            )  # fmt: skip
            task = Rows(dialogues, size.rows, first=first)
            fit(module, rows_of(task, SHOWN, self.room, batch_size=48, seed=seed), size.steps)
            export_student(module.student, module.tokenizer, None, folder)
        return str(folder)

    def looked_at(self, model: str, look: Look) -> dict[str, Any]:
        """Look at the episodes of a model as it is."""
        module = DistillationModule(next(iter(self.arms.values())), model, model)
        module.configure_model()
        data = rows_of(Rows(self.asked), TALK, self.room)
        data.connect(module.tokenizer)
        with torch.no_grad():
            return look(module, data)

    def distilled(self, objective: Objective, student: str, teacher: str, look: Look, seed: int) -> dict[str, Any]:
        """Train a student by an objective at a constant rate, and look at it on the way; returns what was seen."""
        module = DistillationModule(
            objective, student, teacher, seed=seed, optimizer=partial(torch.optim.AdamW, lr=self.rate, weight_decay=0.0)
        )
        looks, task = Looks(look, self.every, self.budget), Rows(self.asked, first=10**8 * (seed + 1))
        fit(module, rows_of(task, TALK, self.room, batch_size=self.batch, seed=seed), self.updates, looks)
        return {"looks": looks.seen}
