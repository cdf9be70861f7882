"""What a configuration of transformers says about its architecture: which class makes it, and what its text part is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part that describes the decoder of text: of a model that reads text only, the configuration itself."""
    part: PretrainedConfig = config.get_text_config(decoder=True)
    return part


def parts_of(config: PretrainedConfig) -> list[PretrainedConfig]:
    """Return the configuration and, of a model of several parts, that of each: of its text, its images and so on."""
    return [config, *(part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)]


def auto_class(config: PretrainedConfig) -> Any:
    """Return the class of transformers that makes models of this architecture from a folder or a configuration.

    It is `AutoModelForCausalLM`, and `AutoModelForImageTextToText` for those that only this one knows.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal, reads_images = _known(config)
    own = getattr(config, "auto_map", None) or {}  # classes of the folder itself, by the names of those that find them
    if causal or AutoModelForCausalLM.__name__ in own:
        return AutoModelForCausalLM
    alone = reads_images is not None or AutoModelForImageTextToText.__name__ in own
    return AutoModelForImageTextToText if alone else AutoModelForCausalLM


def reads_images(config: PretrainedConfig) -> bool:
    """Return whether models of this architecture, as `auto_class` makes them, read images."""
    causal, images = _known(config)
    return images is not None and causal in (None, images)


def is_known(config: PretrainedConfig, kind: type) -> bool:
    """Return whether transformers makes a model of class `kind` of this configuration."""
    return next((found is kind for found in _known(config) if found), False)


def _known(config: PretrainedConfig) -> tuple[type | None, type | None]:
    """Return the classes that `AutoModelForCausalLM` and `AutoModelForImageTextToText` make of a configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    return tuple(mapping.get(type(config), None) for mapping in mappings)
