"""Checks of what in a student can be trained, and warnings of what a run would silently leave untrained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.adapters import is_adapted
from veto_pl.models.sharding import local_part

if TYPE_CHECKING:
    from lightning import LightningModule
    from transformers import PretrainedConfig

    from veto_pl.seams import LanguageModel, ModelSource

ROUTING = ("router_aux_loss_coef", "aux_loss_coef", "router_z_loss_coef")
"""Names, in configurations, of the weights of the losses that keep a router's experts in use."""
SMALLEST_STEP = 2.0**-9
"""A step below this share of a bfloat16 weight rounds away: it has 8 significant bits, and half of the last counts."""


def quantisation(config: PretrainedConfig) -> str | None:
    """Return the name of the method by which the weights are quantised; None where they are numbers to train."""
    settings = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    if settings is None:
        return None
    given = settings if isinstance(settings, Mapping) else settings.to_dict()
    return str(given.get("quant_method", "an unnamed method"))


def check_full_precision(student: ModelSource) -> None:
    """Raise `ConfigurationError` for a student whose quantised weights would be trained, before they are loaded."""
    if student.frozen_base is None and (method := quantisation(student.config())) is not None:
        raise ConfigurationError(
            f"The student is quantised ({method}), so most of its weights cannot be trained. Name the model that it "
            "was made from, with `dtype: bfloat16` where memory is short, or train an adapter beside them: make it the "
            "`source` of a `Lora`. A teacher may be quantised."
        )


def check_numbers(student: LanguageModel) -> None:
    """Raise `ConfigurationError` for weights that no gradient can move, whatever the configuration says of them."""
    packed = [name for name, weight in student.named_parameters() if not weight.is_floating_point()]
    if packed and not is_adapted(student.model):
        raise ConfigurationError(
            f"The student has {len(packed)} weights that are no floating-point numbers, for instance `{packed[0]}`, so "
            "they cannot be trained. Name the model that it was quantised from, or train a `Lora` beside them."
        )


def check_not_compiled(module: LightningModule) -> None:
    """Raise `ConfigurationError` for `torch.compile(module)`, which Lightning unwraps to compiled steps."""
    if module._compiler_ctx is not None:  # private, and all that Lightning leaves of the compiled module
        raise ConfigurationError(
            "`torch.compile(module)` would compile rollouts, loss and metrics anew for nearly every batch, which takes "
            "many times longer than it saves. Give the trainer the module itself."
        )


def warn_of_idle_routers(student: LanguageModel) -> None:
    """Warn that the losses which keep the experts of a mixture in use are left out."""
    config = student.model.config.get_text_config(decoder=True)
    left_out = [f"`{name}: {value}`" for name in ROUTING if (value := getattr(config, name, None))]
    if left_out and any("expert" in name or "router" in name for name, _ in student.named_parameters()):
        warnings.warn(
            f"The student is a mixture of experts, and the loss that keeps its experts in use ({', '.join(left_out)} "
            "of its configuration) is left out: only the objective is trained on. Look for experts that nobody uses.",
            stacklevel=2,
        )


def warn_of_lost_steps(groups: Iterable[Mapping[str, Any]]) -> None:
    """Warn where at least half of the bfloat16 weights are so large that the optimizer's steps round away.

    Args:
        groups: the optimizer's. Those of optimizers of Adam's kind, whose steps are about as large as the rate, are
            looked at; they are known by their `betas`.
    """
    lost = total = 0
    rates = []
    for group in (group for group in groups if "betas" in group):
        rate = float(group["lr"])
        weights = [local_part(weight.detach()) for weight in group["params"] if weight.dtype == torch.bfloat16]
        lost += sum(_count_unmoved(weight, rate) for weight in weights)
        total += sum(weight.numel() for weight in weights)
        rates += [rate] if weights else []
    if total and 2 * lost >= total:
        warnings.warn(
            f"{lost / total:.0%} of the student's weights will not move. They are bfloat16, which has 8 significant "
            f"bits, so a step below 1/512 of a weight rounds away, and at the learning rate {max(rates):g} a step is "
            f"about {max(rates):g}: too small for every weight above {512 * max(rates):.2g}. Load the student with "
            "`dtype: float32` and set `trainer.precision: bf16-mixed`, or raise the rate.",
            stacklevel=2,
        )


def _count_unmoved(weight: Tensor, rate: float) -> int:
    return int((weight.abs() > rate / SMALLEST_STEP).sum())
