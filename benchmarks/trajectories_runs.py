"""What the studies of `trajectories.py` share: words, dialogues, and what is measured of episodes on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import ChatTemplate, PlainTemplate
from veto_pl.seams import (
    Conversation,
    Example,
    Message,
    RolloutSource,
    Sequences,
    Step,
)

TALK = PlainTemplate(format="{prompt}\n", reply="{content}\n")
"""How episodes are shown; `SHOWN` gives the same tokens for dialogues that are known from beginning to end."""
SHOWN = ChatTemplate(
    template="{% for said in messages %}{{ said['content'] }}{{ eos_token if said['role'] == 'assistant' }}"
    "{{ '\\n' }}{% endfor %}"
)
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


def fit(module: DistillationModule, data: PromptDataModule, steps: int, *callbacks: L.Callback) -> None:
    """Train for so many steps on one core, without validation."""
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, limit_val_batches=0,
        num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, data)


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
