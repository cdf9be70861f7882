"""An export is read again, as others will read it, and has to say what the trained student says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veto_pl.core.architectures import is_known
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.models.attention import is_flash
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.loading import Pretrained
from veto_pl.models.probes import examined_dtype, probe_logits
from veto_pl.models.quantising import keep_layout
from veto_pl.models.reading import prefixed_errors
from veto_pl.models.vision import image_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from veto_pl.seams import LanguageModel

HALF = (torch.bfloat16, torch.float16)
FINE, COARSE = 1e-3, 5e-2
"""Allowed differences of logits, as shares of the largest: in float32, and where half precision takes part."""
COARSE_KL = 5e-3
"""Or, where half precision takes part, this KL in nats per token."""


def check_read_back(
    student: LanguageModel,
    expected: Tensor,
    folder: Path,
    read: Callable[[], PreTrainedModel] | None = None,
    remedy: str = "Its class writes other weights than it computes with.",
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Read an export and compare its logits of texts with the student's, and what reads images number by number.

    A model of a class that transformers does not know cannot be read by its configuration alone; then a warning says
    that nothing was compared.

    Args:
        student: that was exported.
        expected: its logits, by `probe_logits`.
        folder: of the export.
        read: reads it; by default as any model folder is read.
        remedy: what to do where it is another model.
        weights: the student's by name, as they were written; None where it was written as an adapter.

    Raises:
        ConfigurationError: it cannot be read, or is another model.
    """
    if not _is_registered(student.model):
        warnings.warn(
            f"The export was not read again: transformers does not know `{type(student.model).__name__}` for its "
            "configuration, so whether what it reads from there is the trained student is not known.",
            stacklevel=3,
        )
        return
    told = "The export could not be read again, so it was not kept."
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), prefixed_errors(told):
        try:
            found = CausalLM((read or (lambda: _read(student, folder)))(), student.vocab_size)
        except VetoError as error:
            raise ConfigurationError(f"{told} {error}") from error
        keep_layout(found)  # the files are compared, not how a processor repacks them
        logits = probe_logits(found)
    _compare_images(found, weights or {}, remedy)
    _compare(logits, expected, remedy, coarse=_is_coarse(student) or found.model.dtype in HALF)


def _compare_images(found: LanguageModel, weights: Mapping[str, Tensor], remedy: str) -> None:
    images = {id(weight) for weight in image_weights(found.model)}
    for name, weight in found.model.named_parameters():
        if id(weight) in images and name in weights and not torch.equal(weight, weights[name].to("cpu", weight.dtype)):
            raise ConfigurationError(
                f"The export is another model than the trained student: read again, its `{name}`, which reads images, "
                f"has other numbers, so it was not kept. {remedy}"
            )


def _compare(logits: Tensor, expected: Tensor, remedy: str, *, coarse: bool) -> None:
    difference = float((logits - expected).nan_to_num(nan=0.0).abs().max())
    size = float(expected.nan_to_num(neginf=0.0).abs().max())
    logp, other = expected.log_softmax(-1), logits.log_softmax(-1)
    gap = float((logp.exp() * (logp - other).nan_to_num(nan=0.0)).sum(-1).mean())
    near = difference <= (COARSE if coarse else FINE) * size or (coarse and abs(gap) <= COARSE_KL)
    if not near:
        raise ConfigurationError(
            f"The export is another model than the trained student: read again, its logits differ by up to "
            f"{difference:.2g} (KL {gap:.2g} nats per token), so it was not kept. {remedy}"
        )


def _read(student: LanguageModel, folder: Path) -> PreTrainedModel:
    attention = student.model.config._attn_implementation
    known: Any = "auto" if is_flash(student) or attention not in ("eager", "sdpa") else attention
    source = Pretrained(
        str(folder), dtype="auto", attention=known, trust_remote_code=student.model._auto_class is not None
    )
    return source.load()


def _is_registered(model: PreTrainedModel) -> bool:
    return model._auto_class is not None or is_known(model.config, type(model))


def _is_coarse(student: LanguageModel) -> bool:
    """Return whether half precision takes part in what the student computes: in its weights, or to unpack them."""
    parts = (getattr(module, "compute_dtype", None) for module in student.modules())
    return examined_dtype(student) in HALF or any(part in HALF for part in parts)
