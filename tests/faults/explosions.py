"""Runs in which a number overflows, for single processes and for ranks."""

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import JsonLines
from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.models.sharding import full_weights
from veto_pl.objectives import SFT, Distill, Sum, TokenObjective
from veto_pl.rollouts import FromDataset
from veto_pl.testing.tiny import ALPHABET, DIMENSIONS, tiny_source
from veto_pl.training.fsdp import FullyShard

BAD = CharacterTokenizer(ALPHABET).load().convert_tokens_to_ids("p")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
HEALTHY = ["ab", "cdefgh", "i", "jklmno"]
STEPS = (HEALTHY, ["aa", "bp", "cde", "f"], ["mno", "d", "hij", "cc"])
"""The words of each step; one of the second step's has the letter that things explode at, in row 1 of the step."""


@dataclass(frozen=True)
class Overflowing(RandomWeights):
    """A model whose logits are infinite where it reads the bad letter."""

    def load(self):
        model = super().load()
        seen = {}
        model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: seen.update(ids=inputs[0]))

        def hook(module, inputs, output):
            return torch.where((seen["ids"] == BAD)[..., None], torch.inf, output)

        model.model.norm.register_forward_hook(hook)
        return model


@dataclass(frozen=True)
class OverflowingBackward(RandomWeights):
    """A model whose gradient overflows inside, where it reads the bad letter."""

    def load(self):
        return self._hooked(super().load())

    def skeleton(self):
        return self._hooked(super().skeleton())

    def _hooked(self, model):
        def hook(module, inputs, output):
            if output.requires_grad:
                factor = torch.where(inputs[0] == BAD, torch.inf, 1.0)[..., None]
                output.register_hook(lambda gradient: gradient * factor)

        model.get_input_embeddings().register_forward_hook(hook)
        return model


@dataclass(frozen=True, kw_only=True)
class DividesByZero(TokenObjective):
    """Likelihood that is divided by zero at the bad letter."""

    needs_teacher = False

    def per_token(self, rows):
        return -rows.token_logp() / (rows.token_ids != BAD)


@dataclass(frozen=True, kw_only=True)
class SteepAtZero(TokenObjective):
    """Its loss is finite everywhere, and its gradient is not at the bad letter."""

    needs_teacher = False

    def per_token(self, rows):
        logp = rows.token_logp()
        return torch.where(rows.token_ids == BAD, 0.0 * logp, -logp).sqrt()


def source(cls, seed: int = 0) -> RandomWeights:
    """As `tiny_source`, of another class."""
    dimensions = {"vocab_size": len(ALPHABET) + 3, "initializer_range": 0.4, **DIMENSIONS["llama"]}
    return cls("llama", dimensions, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Healthy(FromDataset):
    """Another rollout than the plain one."""


CASES: dict[str, dict[str, Any]] = {
    "teacher": {"objective": Distill(), "teacher": source(Overflowing, seed=1)},
    "loss": {"objective": DividesByZero()},
    "gradient": {"objective": SteepAtZero()},
    "backbone": {"objective": SFT(), "student": source(OverflowingBackward)},
    "sum": {"objective": Sum(terms={"a": DividesByZero(), "b": SFT(aggregation="sequence")}, weights={"b": 0.3})},
    "two rollouts": {"objective": Sum(terms={"a": SteepAtZero(rollout=Healthy()), "b": SFT()})},
}
BLAME = {
    "teacher": ["loss", "gradient"],
    "loss": ["loss", "gradient"],
    "gradient": ["gradient"],
    "backbone": [],
    "sum": ["loss", "gradient"],
    "two rollouts": ["gradient"],
}


def prepare(folder: str | Path, name: str = "rows", steps: Any = STEPS) -> str:
    """Writes rows, whose completions are their words backwards, and returns the file."""
    path = Path(folder, f"{name}.jsonl")
    words = [word for step in steps for word in step]
    path.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in words))
    return str(path)


class Log(L.Callback):
    """What every optimizer step logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > len(self.steps):
            self.steps.append(dict(pl_module.logged))


def module_of(case: str, **settings: Any) -> DistillationModule:
    """AdamW with momentum and weight decay: a step without gradient would show."""
    given = {"student": tiny_source(), "teacher": tiny_source(seed=1), **CASES[case], **settings}
    return DistillationModule(
        **{
            "tokenizer": CharacterTokenizer(ALPHABET),
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
            **given,
        }
    )


def train(
    case: str,
    rows: str,
    folder: str,
    steps: int,
    *,
    batch_size: int = 4,
    strategy: str = "auto",
    ckpt_path: str | None = None,
    module: dict[str, Any] | None = None,
    **trainer: Any,
) -> dict[str, Any]:
    """One run; its weights, what it logged, its warnings and the trainer's part in them."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    built = module_of(case, **(module or {}))
    log = Log()
    settings = {
        "max_steps": steps, "num_sanity_val_steps": 0, "use_distributed_sampler": False, "default_root_dir": folder,
        "accelerator": "cpu", "gradient_clip_val": 1.0, "devices": 1 if strategy == "auto" else 2,
        "strategy": FullyShard() if strategy == "fsdp2" else strategy, "limit_val_batches": 0,
    }  # fmt: skip
    settings |= QUIET | trainer
    runner = L.Trainer(**settings | {"callbacks": [log, *settings.get("callbacks", [])]})
    data = PromptDataModule(
        JsonLines(train=rows), batch_size=batch_size, shuffle=False, max_prompt_tokens=32, max_completion_tokens=32
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(built, data, ckpt_path=ckpt_path)
    said = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    weights = {name: weight.clone() for name, weight in full_weights(built.student).items()}
    return {"weights": weights, "log": log.steps, "said": said, "steps": runner.global_step}


def train_all(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run after another, in the same processes."""
    return [train(**case) for case in cases]
