"""Reads and sets the ids of EOS, BOS and padding of a model and its tokenizer."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Return the ids that end a text: the tokenizer's EOS first, then those of the model's generation settings."""
    stated = listed_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    return tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *stated) if i is not None))


def listed_ids(stated: Any) -> tuple[Any, ...]:
    """Return as a tuple what a configuration states as one id, a list of ids, or None."""
    return tuple(stated) if isinstance(stated, list) else () if stated is None else (stated,)


def state_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the ids of EOS, BOS and padding into both of the model's configurations.

    What the tokenizer does not have stays as the model says it. A filler stays out of the architecture's configuration
    where it would change the architecture: an embedding that is made with one does not train that row, and some models
    count their positions from it.
    """
    ends = list(end_ids(tokenizer, model))
    stated = {"eos_token_id": ends if len(ends) > 1 else next(iter(ends), None), "bos_token_id": tokenizer.bos_token_id}
    filler = tokenizer.pad_token_id
    padded = getattr(model.get_input_embeddings(), "padding_idx", None) is not None
    everything = stated | {"pad_token_id": filler}
    in_config = stated if padded or filler in ends else everything
    for settings, values in ((model.config, in_config), (model.generation_config, everything)):
        for name, value in values.items():
            if value is not None and settings is not None:
                setattr(settings, name, value)


def drop_contradictions(model: PreTrainedModel) -> None:
    """Replace generation settings that contradict each other, and so cannot be saved, by empty ones; with a warning.

    What ends a text, begins it and fills it up stays.
    """
    settings = model.generation_config
    try:
        if settings is not None:
            settings.validate(strict=True)
    except ValueError as error:
        ids = {name: getattr(settings, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
        model.generation_config = type(settings)(**ids)
        reason = " ".join(str(error).split())
        warnings.warn(
            f"The student's generation settings contradict each other and are left out of the export: {reason:.300}",
            stacklevel=3,
        )
