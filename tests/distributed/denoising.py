"""A denoising run that ranks and a single process make alike."""

from typing import Any

import torch

from tests.diffusion.tiny_denoisers import fit, module_of, tiny, weights
from veto_pl.diffusion import DOPSD, AveragedDenoiser, FewSteps, FlowMatching
from veto_pl.objectives import Sum

BOTH = Sum(terms={"on": DOPSD(rollout=FewSteps(samples=2)), "off": FlowMatching()}, weights={"off": 0.3})


def train(folder: str, **trainer: Any) -> dict[str, Any]:
    """Four steps over twelve rows, six a step, and a validation: the log, the weights and the teacher's."""
    module = module_of(BOTH, AveragedDenoiser(tiny(0), decay=0.5))
    runner = fit(module, folder, max_steps=4, limit_val_batches=1.0, val_check_interval=trainer.pop("each"), **trainer)
    names = ("train/loss", "train/grad_norm", "train/tokens", "validation/energy_distance")
    assert module.models is not None
    assert module.models.teacher is not None
    return {
        "log": torch.tensor([float(runner.callback_metrics[name]) for name in names]),
        "weights": weights(module),
        "teacher": torch.cat([p.flatten() for p in module.models.teacher.parameters()]),
    }


def both(folder: str) -> list[dict[str, Any]]:
    """Two micro-batches a step as well as one."""
    ranks: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    whole = train(folder, each=2, batch_size=3, **ranks)
    return [whole, train(folder, each=2, batch_size=1, accumulate_grad_batches=3, **ranks)]
