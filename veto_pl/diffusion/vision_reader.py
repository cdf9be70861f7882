"""Prompts read beside an image, by a model that speaks the language of a pipeline's text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import ConfigurationError

LAYER = -2
"""Of whose hidden states a condition is made, as in the pipeline."""


class VisionReader:
    """A Qwen3-VL whose language weights are those of a text encoder, so that both speak one language.

    Args:
        path: a folder or a hub id.
        dtype: of the weights.
        longest: tokens of a prompt with its image at most; more is cut off.

    References:
        arXiv 2605.05204, whose code does so for Z-Image.
    """

    def __init__(self, path: str, dtype: torch.dtype, longest: int = 1024) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        place = str(Path(path).expanduser())
        try:
            self.images = AutoImageProcessor.from_pretrained(place)
            self.tokenizer = AutoTokenizer.from_pretrained(place)
            self.model = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(
                f"`vision`: given `{path}`, expected a model that reads images, such as a Qwen3-VL. transformers says: "
                f"{shorten(error, 200)}"
            ) from error
        self.longest = longest

    def read(self, texts: Sequence[str], images: Sequence[Any], encoder: Any) -> list[Tensor]:
        """Return what a text encoder would make of each text behind its image, [L, D] each.

        Args:
            texts: prompts.
            images: of Pillow, one for each.
            encoder: its weights are read with.

        Raises:
            ConfigurationError: the language model is not the encoder's.
        """
        self._speak_as(encoder)
        self.model.to(encoder.device)
        return [self._read(text, image) for text, image in zip(texts, images, strict=True)]

    def _read(self, text: str, image: Any) -> Tensor:
        seen = self.images(images=[image], return_tensors="pt")
        count = int(seen["image_grid_thw"].prod()) // self.images.merge_size**2
        content = [{"type": "image"}, {"type": "text", "text": text}]
        written: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pad = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        ids = self.tokenizer(written.replace(pad, pad * count), return_tensors="pt", add_special_tokens=False)
        if ids["input_ids"].eq(self.model.config.image_token_id).sum() != count:
            raise ConfigurationError(
                f"`vision`: its chat template writes no `{pad}` for an image, or a prompt does. Take another one."
            )
        kinds = ids["input_ids"].eq(self.model.config.image_token_id).int()
        given = {"input_ids": ids["input_ids"], "mm_token_type_ids": kinds, **seen}
        device = self.model.device
        with torch.no_grad():
            found = self.model.model(**{n: v.to(device) for n, v in given.items()}, output_hidden_states=True)
        hidden: Tensor = found.hidden_states[LAYER][0]
        return hidden[: self.longest]

    def _speak_as(self, encoder: Any) -> None:
        own = self.model.model.language_model
        given = {name.removeprefix("model."): value for name, value in encoder.state_dict().items()}
        known = {name: value for name, value in given.items() if name != "lm_head.weight"}
        try:
            own.load_state_dict(known)
        except RuntimeError as error:
            raise ConfigurationError(
                f"`vision`: its language model is not that of the pipeline's encoder. torch says: {shorten(error, 200)}"
            ) from error
