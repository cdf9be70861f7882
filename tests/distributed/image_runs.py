"""Small runs of students that read images, which ranks and single processes make alike."""

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from runs import QUIET, Curve

from tests import vision
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import ExactMatch, JsonLines, PlainTemplate
from veto_pl.models import InMemoryTokenizer
from veto_pl.models.sharding import full_weights
from veto_pl.objectives import SFT, Distill
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.training.fsdp import FullyShard

WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl"] * 2
SAMPLED = FromStudent(Sampling(max_new_tokens=5, num_completions=2))
OBJECTIVES = {"sampled": Distill(rollout=SAMPLED), "SFT": SFT()}


class Pictured(PromptDataModule):
    """Puts an image before every second prompt, or before none: of two ranks that read in turn one has them all."""

    style = "llava"
    images = True

    def train_dataloader(self):
        return self._pictured(super().train_dataloader())

    def val_dataloader(self):
        return self._pictured(super().val_dataloader())

    def _pictured(self, loader):
        pad = loader.collate_fn
        loader.collate_fn = lambda rows: self.with_images(pad(rows))
        return loader

    def with_images(self, batch):
        rows = [
            ([(16, 8 * (1 + number % 3), number)] if self.images and number % 2 == 0 else [], example.prompt)
            for number, example in zip(batch.numbers.tolist(), batch.examples, strict=True)
        ]
        made = vision.prompts(self.style, rows)
        return replace(batch, input_ids=made.input_ids, attention_mask=made.attention_mask, media=made.media)


def train(
    folder, style, objective, *, batch_size=4, strategy="auto", images=True, gather=(True, False), source=None,
    resumed=None, callbacks=(), **trainer,
):  # fmt: skip
    """Three steps with a validation; what they logged and the weights in the end. They go on from `resumed`."""
    file = Path(folder, "rows.jsonl")
    if not file.exists():
        file.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in WORDS))
    data = Pictured(
        JsonLines(train=str(file), validation=str(file), verifier=ExactMatch()), PlainTemplate("{prompt}"),
        batch_size=batch_size, validation_batch_size=4, shuffle=False, max_prompt_tokens=64, max_completion_tokens=16,
        validation_limit=8,
    )  # fmt: skip
    data.style, data.images = style, images
    module = DistillationModule(
        OBJECTIVES[objective], source or vision.source(style), vision.source(style, 1),
        tokenizer=InMemoryTokenizer(vision.tokenizer(style)),
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        evaluation=Sampling(temperature=0.0, max_new_tokens=4),
    )  # fmt: skip
    curve = Curve()
    settings = {
        "max_steps": 3, "val_check_interval": 3, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "default_root_dir": str(folder), "accelerator": "cpu", "gradient_clip_val": 1.0,
        "callbacks": [curve, *callbacks],
        "strategy": FullyShard(*gather) if strategy == "fsdp2" else strategy, "devices": 1 if strategy == "auto" else 2,
    }  # fmt: skip
    runner = L.Trainer(**(settings | QUIET | trainer))
    runner.fit(module, data, ckpt_path=resumed)
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    weights = {name: weight.clone() for name, weight in full_weights(module.student).items()}
    return {"curve": torch.tensor(curve.points), "weights": weights, "metrics": metrics}


def train_all(folder, cases):
    """One run after another, in the same processes."""
    return [train(folder, **case) for case in cases]
