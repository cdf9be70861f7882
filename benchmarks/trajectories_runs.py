"""What the studies of `trajectories.py` share: models that imitate an expert, and what is measured of episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.core.laws import Law
from veto_pl.data import ChatTemplate, PlainTemplate
from veto_pl.models import RandomWeights
from veto_pl.models.export_folder import export_student
from veto_pl.objectives import SFT
from veto_pl.parts.schedules import Linear, WarmUp
from veto_pl.rollouts import FromDataset
from veto_pl.seams import (
    Conversation,
    Example,
    Message,
    Objective,
    RolloutSource,
    Sequences,
    Step,
    Task,
)

TALK = PlainTemplate(format="{prompt}\n", reply="{content}\n")
"""How episodes are shown; `SHOWN` gives the same tokens for dialogues that are known from beginning to end."""
SHOWN = ChatTemplate(
    template="{% for said in messages %}{{ said['content'] }}{{ eos_token if said['role'] == 'assistant' }}"
    "{{ '\\n' }}{% endfor %}"
)
HELD_OUT = 1 << 30
"""The number of the first held-out row."""
Look = Callable[[DistillationModule, PromptDataModule], dict[str, Any]]
"""Lets the student of a run play held-out episodes, and returns what is seen."""


@dataclass(frozen=True)
class Size:
    """A model that imitates an expert, and for how long it does.

    Args:
        width: of the model, which has two layers.
        steps: of imitation.
        rows: dialogues that there are to imitate.
        rate: of AdamW, at its highest.
    """

    width: int
    steps: int
    rows: int
    rate: float = 4e-3


def tokenizer_of(
    words: Sequence[str], pieces: str, left_out: dict[str, str], *, spaced: bool
) -> PreTrainedTokenizerBase:
    """A tokenizer of whole words.

    Args:
        words: each has an id.
        pieces: the expression of a word; whatever stands between words is no token.
        left_out: what is read in place of an expression.
        spaced: whether words are told apart by spaces when they are written.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    ids = {word: i for i, word in enumerate([*special.values(), *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Replace(Regex(a), b) for a, b in left_out.items()])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    if not spaced:
        core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special)


def dialogue(messages: Sequence[Message], turns: Sequence[int], **row: Any) -> Example:
    """A dialogue up to the last of the turns that are imitated, which are places in the messages."""
    said = Conversation(tuple(messages[: turns[-1] + 1]), tuple(turns))
    return Example(messages[0]["content"], messages[turns[-1]]["content"], row, conversation=said)


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


def fit(module: DistillationModule, data: PromptDataModule, steps: int, *callbacks: L.Callback) -> None:
    """Train for so many steps on one core, without validation."""
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, limit_val_batches=0,
        num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, data)


def rows_of(task: Task, template: Any, room: int, **rest: Any) -> PromptDataModule:
    """The data of a study whose models have so many positions, a quarter of them for what is asked."""
    return PromptDataModule(task, template, max_prompt_tokens=room // 4, max_completion_tokens=room - room // 4, **rest)


class Looks(L.Callback):
    """Looks at held-out episodes before a training, every so many turns of the student, and at the end.

    Args:
        look: returns what is seen.
        every: turns between two looks.
        budget: turns after which the training ends; the last look is then.
    """

    def __init__(self, look: Look, every: int, budget: float) -> None:
        self.look, self.every, self.budget = look, every, budget
        self.seen: list[dict[str, Any]] = []
        self.turns, self.tokens, self._due = 0, 0, 0

    def on_train_start(self, trainer: L.Trainer, module: DistillationModule) -> None:
        self._look(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: DistillationModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.turns += round(module.logged["train/played_turns"])
        self.tokens += round(module.logged["train/tokens"])
        if self.turns >= min(self._due, self.budget):
            self._look(trainer, module)
        trainer.should_stop |= self.turns >= self.budget

    def on_train_end(self, trainer: L.Trainer, module: DistillationModule) -> None:
        if self.seen[-1]["turns"] != self.turns:
            self._look(trainer, module)

    def _look(self, trainer: L.Trainer, module: DistillationModule) -> None:
        with torch.no_grad():
            seen = self.look(module, trainer.datamodule)
        self._due += self.every
        counts = {"turns": self.turns, "tokens": self.tokens, "updates": trainer.global_step}
        self.seen.append(counts | {"cpu": round(process_time(), 1)} | seen)


@dataclass(frozen=True)
class Seen:
    """Held-out episodes with the log-probabilities of both models.

    Args:
        rows: an episode each, with rewards.
        student: [N, V], of all ids at the N tokens of the student.
        teacher: [N, V].
    """

    rows: Sequences
    student: Tensor
    teacher: Tensor

    @classmethod
    def of(
        cls, module: DistillationModule, data: PromptDataModule, rollout: RolloutSource, rows: list[Example], seed: int
    ) -> Seen:
        """Let the student play whole episodes of these rows."""
        prompts = data.collator(rows)
        played = prompts.rewarded(rollout(prompts, module.models, Step(0, 1, seed)), module.tokenizer)
        read = (
            model(played, lambda hidden, head: head.project(hidden)[0])
            for model in (module.models.student, module.models.teacher)
        )
        return cls(played, *(logits.log_softmax(-1) for logits in read))

    def turns(self, values: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """[E, K] the sum of [N] values over the tokens of each turn of each episode, and how many tokens these are."""
        turn = self.rows.turn_ids[:, 1:].flatten()[self.rows.prediction_index] - 1
        place = self.rows.tokens()[1], turn
        empty = values.new_zeros(len(self.rows), most)
        return tuple(empty.index_put(place, one, accumulate=True) for one in (values, torch.ones_like(values)))

    def log_ratio(self) -> Tensor:
        """[N] of teacher to student, of the tokens that the student wrote."""
        ids = self.rows.token_ids()[:, None]
        return (self.teacher - self.student).gather(1, ids)[:, 0]


class Finished:
    """Runs that are done, a line each in a file; a script that was stopped goes on behind them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.runs: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def of(self, study: str, arm: str) -> dict[int, dict[str, Any]]:
        """Seed -> what the run of an arm has found."""
        return {run["seed"]: run for run in self.runs if (run["study"], run["arm"]) == (study, arm)}

    def add(self, study: str, arm: str, seed: int, run: Callable[[], dict[str, Any]]) -> None:
        """Run it, unless it is done."""
        if seed not in self.of(study, arm):
            begun = process_time()
            found = {"study": study, "arm": arm, "seed": seed} | run()
            self.runs.append(found | {"seconds": round(process_time() - begun, 1)})
            print(study, arm, seed, self.runs[-1]["seconds"], flush=True)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(self.runs[-1]) + "\n")


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
