"""The part of a causal language model that gives hidden states, without the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from veto_pl.exceptions import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the model's own base model or, where a class misnames it, the one module beside the head.

    Raises:
        ConfigurationError: there is no such module.
    """
    if model.base_model is not model:
        return cast(nn.Module, model.base_model)
    head = model.get_output_embeddings()
    beside = [module for module in model.children() if module is not head]
    if head is None or len(beside) != 1:
        raise ConfigurationError(
            f"{type(model).__name__} has no part that veto_pl knows as the one that gives hidden states: beside its "
            f"head it has {len(beside)} modules. Use another architecture, or the language model inside of this one."
        )
    return cast(nn.Module, beside[0])
