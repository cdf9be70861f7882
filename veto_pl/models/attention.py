"""What is particular about flash attention: it computes in half precision, and takes the bounds of packed sequences."""

from __future__ import annotations

import inspect
from itertools import accumulate
from typing import Any

import torch

from veto_pl.core.transfer import sent
from veto_pl.models.backbone import backbone
from veto_pl.models.packing import Packing
from veto_pl.seams import LanguageModel


def is_flash(model: LanguageModel) -> bool:
    """Return whether the model's attention is one of the flash attentions of transformers."""
    return "flash" in (model.model.config._attn_implementation or "")


def flash_bounds(model: LanguageModel, packing: Packing) -> dict[str, Any]:
    """Return the keywords that tell flash attention where the sequences of a single row begin; {} for another model.

    Without them transformers finds that out in every layer, from the positions, and waits for the device each time.
    What follows the last sequence is one of its own.
    """
    parameters = inspect.signature(backbone(model.model).forward).parameters.values()
    takes_keywords = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    if not (is_flash(model) and takes_keywords and len(packing.input_ids) == 1):
        return {}
    width = packing.input_ids.shape[1]
    bounds = list(accumulate(packing.lengths, initial=0))
    begins = sent(torch.tensor([*bounds, width], dtype=torch.int32), packing.input_ids.device)
    longest = max([width - bounds[-1], *packing.lengths])
    return {"cu_seq_lens_q": begins, "cu_seq_lens_k": begins, "max_length_q": longest, "max_length_k": longest}
