"""Runs of ranks that are stopped in the middle of a window, and resumed."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from runs import OBJECTIVES, QUIET, Curve

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import Checkpoints
from veto_pl.data import JsonLines
from veto_pl.exceptions import NonFiniteError
from veto_pl.models import CharacterTokenizer, Lora, MovingAverage, Pretrained
from veto_pl.models.sharding import full_weights
from veto_pl.objectives import SFT, Veto
from veto_pl.parts.panels import Routed
from veto_pl.rollouts import FromStudent, Replay, Sampling
from veto_pl.seams import ModelSource
from veto_pl.testing.tiny import ALPHABET, tiny_source

STEPS = 8
REMEMBERS = Veto(rollout=Replay(FromStudent(Sampling(max_new_tokens=6)), fraction=0.5, capacity=24))


@dataclass(frozen=True, kw_only=True)
class NoNumber(SFT):
    """Its loss is NaN from the fifth step on, on the second rank alone."""

    def per_token(self, rows):
        bad = rows.step.index >= 4 and rows.step.rank == 1
        return super().per_token(rows) * (float("nan") if bad else 1.0)


class KilledError(RuntimeError):
    """Stands for a process that is gone: on several ranks nothing is saved after it."""


class Kill(L.Callback):
    """Ends the run inside the window after `step`."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and trainer.fit_loop.batch_idx % 2 == 1:
            raise KilledError


ROUTED = Veto(rollout=FromStudent(Sampling(max_new_tokens=6)), panel=Routed(column="to"))


def run(
    folder: str,
    name: str,
    *,
    kill: int | None = None,
    resume: str | None = None,
    strategy: str = "auto",
    ranks: int = 1,
    objective: str = "remembers",
    optimizer: str = "AdamW",
    adapter: bool = False,
    stranger: bool = False,
) -> dict[str, Any]:
    """Eight steps of two micro-batches over shuffled epochs of 48 rows, eight rows a micro-batch; saved every 3."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = {"lr": 0.02, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.02}
    objectives = {"remembers": REMEMBERS, "NaN": NoNumber(), "routed": ROUTED}
    student: ModelSource = tiny_source(attention_dropout=0.1 if objective == "remembers" else 0.0)
    if adapter:
        student = Lora(student, rank=2, dropout=0.1, modules_to_save=("lm_head",))
    teacher = MovingAverage(student, decay=0.8)
    given = teacher if objective == "remembers" else tiny_source(seed=1)
    if stranger:
        given = Pretrained(str(Path(folder, "stranger")))
    module = DistillationModule(
        (OBJECTIVES | objectives)[objective],
        student,
        given,
        tokenizer=CharacterTokenizer(ALPHABET),
        optimizer=lambda parameters: getattr(torch.optim, optimizer)(parameters, **settings),
        skip_limit=2,
        teachers={"other": teacher} if objective == "routed" else None,
    )
    curve = Curve()
    checkpoints = Checkpoints(dirpath=str(Path(folder, name)), every_n_train_steps=3)
    trainer = L.Trainer(
        max_steps=STEPS, accumulate_grad_batches=2, accelerator="cpu", devices=ranks, strategy=strategy,
        limit_val_batches=0, use_distributed_sampler=False, gradient_clip_val=1.0, default_root_dir=folder,
        callbacks=[curve, checkpoints, Kill(kill)], **{**QUIET, "enable_checkpointing": True},
    )  # fmt: skip
    data = PromptDataModule(
        JsonLines(train=str(Path(folder, "rows.jsonl"))),
        batch_size=8 // ranks,
        max_prompt_tokens=32,
        max_completion_tokens=32,
    )
    try:
        trainer.fit(module, data, ckpt_path=resume and str(Path(folder, resume, "last.ckpt")))
    except (KilledError, NonFiniteError) as error:
        return {"stopped by": type(error).__name__}
    return {"curve": torch.tensor(curve.points[-2:]), "weights": {k: v.clone() for k, v in _weights(module).items()}}


def run_all(folder: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One after another, in the same processes."""
    return [run(folder, **case) for case in cases]


def _weights(module: DistillationModule) -> dict[str, torch.Tensor]:
    assert module.models is not None
    weights = full_weights(module.student)
    for role, teacher in module.models.named_teachers.items():
        if module.teacher_sources[role].moves:
            weights |= {f"{role}.{name}": value for name, value in full_weights(teacher).items()}
    return weights
