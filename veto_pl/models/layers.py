"""The decoder layers of a transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from veto_pl.core.architectures import text_config
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.backbone import backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name, in the backbone, of the list of modules that is as long as the model is deep, and the list.

    Of a model that reads images it is that of the text's decoder.

    `ConfigurationError` is raised where there is none.
    """
    depth, decoder = text_config(model.config).num_hidden_layers, model.get_decoder()
    outer = next((name for name, module in backbone(model).named_modules() if module is decoder), "")
    for name, module in backbone(model).get_submodule(outer).named_modules(prefix=outer):
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ConfigurationError(
        f"`{type(model).__name__}` has no list of its {depth} layers, so they can be neither dropped nor sharded one "
        "by one. Use another architecture."
    )
