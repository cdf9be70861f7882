"""A denoising run that ranks and a single process make alike."""

from pathlib import Path
from typing import Any

import torch

from tests.diffusion.tiny_denoisers import fit, module_of, tiny
from veto_pl.callbacks import Checkpoints
from veto_pl.diffusion import DOPSD, AveragedDenoiser, DenoiserFiles, FewSteps, FlowMatching, LoraDenoiser
from veto_pl.models.sharding import full_weights
from veto_pl.objectives import Sum
from veto_pl.training.fsdp import FullyShard

BOTH = Sum(terms={"on": DOPSD(rollout=FewSteps(samples=2)), "off": FlowMatching()}, weights={"off": 0.3})
SOURCES = {"whole": tiny(0), "adapter": LoraDenoiser(tiny(0), rank=2, alpha=4.0, seed=9)}


def flat(model: Any) -> torch.Tensor:
    """All weights of a model in one row, on the first rank; nothing on the others where ranks share them."""
    found = full_weights(model)
    return torch.cat([found[name].flatten() for name in sorted(found)]) if found else torch.empty(0)


def train(folder: str, source: str = "whole", steps: int = 4, **trainer: Any) -> dict[str, Any]:
    """Steps over twelve rows, six a step, and a validation: the log, the weights and the teacher's."""
    student = SOURCES[source]
    module = module_of(BOTH, AveragedDenoiser(student, decay=0.5), student)
    every = trainer.pop("each", 2)
    runner = fit(module, folder, max_steps=steps, limit_val_batches=1.0, val_check_interval=every, **trainer)
    names = ("train/loss", "train/grad_norm", "train/tokens", "validation/energy_distance")
    assert module.models is not None
    return {
        "log": torch.tensor([float(runner.callback_metrics[name]) for name in names]),
        "weights": flat(module.models.student),
        "teacher": flat(module.models.teacher),
    }


def both(folder: str) -> list[dict[str, Any]]:
    """Two micro-batches a step as well as one."""
    ranks: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    whole = train(folder, batch_size=3, **ranks)
    return [whole, train(folder, batch_size=1, accumulate_grad_batches=3, **ranks)]


def sharded(folder: str, source: str) -> dict[str, Any]:
    """Weights of student and teacher on both ranks in parts: a run, the same one stopped and gone on with, exports."""
    ranks: dict[str, Any] = {"devices": 2, "batch_size": 3, "source": source}
    saved = {"every_n_train_steps": 1}

    def once(name: str, steps: int, **more: Any) -> dict[str, Any]:
        kept = Checkpoints(dirpath=str(Path(folder, name)), **saved)
        return train(
            str(Path(folder, f"{source}-{name}")), steps=steps, strategy=FullyShard(), enable_checkpointing=True,
            callbacks=[kept, DenoiserFiles(shown=2)], **ranks, **more,
        )  # fmt: skip

    whole = once(f"{source}-whole", 4)
    once(f"{source}-stopped", 2)
    resumed = once(f"{source}-resumed", 4, ckpt_path=str(Path(folder, f"{source}-stopped", "last.ckpt")))
    return {"whole": whole, "resumed": resumed}
