"""Which ids end a model's text, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veto_pl.seams import ModelSource


def stored_end_ids(source: ModelSource) -> tuple[int, ...]:
    """The end ids of the generation settings that a model is stored with, or else of its configuration."""
    from transformers import GenerationConfig

    location = source.tokenizer_source
    settings: Any = None
    if location is not None:
        try:
            settings = GenerationConfig.from_pretrained(
                location["pretrained_model_name_or_path"], revision=location.get("revision")
            )
        except OSError:  # a model without settings of its own
            settings = None
    ids = getattr(source.config() if settings is None else settings, "eos_token_id", None)
    return tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)
