"""The decoder layers of a transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.backbone import backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name, in the backbone, of the list of modules that is as long as the model is deep, and the list.

    `ConfigurationError` is raised where there is none.
    """
    depth = model.config.num_hidden_layers
    for name, module in backbone(model).named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ConfigurationError(
        f"`{type(model).__name__}` has no list of its {depth} layers, so they can be neither dropped nor sharded one "
        "by one. Use another architecture."
    )
