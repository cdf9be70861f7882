"""What pipelines of diffusers do around their transformer: texts and images become conditions and latents, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.extras import require_extra
from veto_pl.core.mistakes import shorten
from veto_pl.diffusion.vision_reader import VisionReader
from veto_pl.exceptions import ConfigurationError

Conditions = dict[str, Tensor]


class Surroundings(ABC):
    """A loaded pipeline without its transformer.

    Args:
        pipeline: of diffusers.
        reader: reads images beside texts, for pipelines whose own text encoder sees none.
    """

    reads_images = False
    """Whether the transformer itself can be shown images."""

    def __init__(self, pipeline: Any, reader: VisionReader | None = None) -> None:
        self.pipeline = pipeline
        self.reader = reader

    @abstractmethod
    def told(self, texts: Sequence[str]) -> Conditions:
        """Return what the student reads of texts, [N, ...] by name."""

    @abstractmethod
    def told_more(self, texts: Sequence[str], images: Sequence[Any], latents: Tensor) -> Conditions:
        """Return what a teacher reads of texts and target images, [N, ...] by name.

        Args:
            texts: N of them.
            images: N images of Pillow.
            latents: of the images.
        """

    @abstractmethod
    def latents(self, pixels: Tensor) -> Tensor:
        """Return the states of images [N, 3, H, W] in [-1, 1]."""

    @abstractmethod
    def pixels(self, latents: Tensor) -> Tensor:
        """Return images [N, 3, H, W], about in [-1, 1], of states."""

    @property
    def step_of_pixels(self) -> int:
        """Sides of images are multiples of this."""
        return int(self.pipeline.vae_scale_factor) * 2


class ZImage(Surroundings):
    """Z-Image: a Qwen3-VL that sees the image reads the teacher's prompt, with the language weights of the pipeline.

    Without such a reader the teacher is told what the student is told.
    """

    def told(self, texts: Sequence[str]) -> Conditions:
        """Return embeddings of prompts, as the pipeline makes them."""
        return padded(self.pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False)[0])

    def told_more(self, texts: Sequence[str], images: Sequence[Any], latents: Tensor) -> Conditions:
        """Return embeddings of prompts that are read beside the image, or its latents beside the prompt."""
        return {} if self.reader is None else padded(self.reader.read(texts, images, self.pipeline.text_encoder))

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the modes of the autoencoder, in the scale of the transformer."""
        vae = self.pipeline.vae
        encoded = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        found: Tensor = (encoded - vae.config.shift_factor) * vae.config.scaling_factor
        return found

    def pixels(self, latents: Tensor) -> Tensor:
        """Return what the autoencoder makes of latents."""
        vae = self.pipeline.vae
        found: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor)[0]
        return found


class Flux2Klein(Surroundings):
    """FLUX.2-klein: the teacher is shown the latents of the target as the image that is to be edited."""

    reads_images = True

    def told(self, texts: Sequence[str]) -> Conditions:
        """Return embeddings of prompts, as the pipeline makes them."""
        return {"prompt_embeds": self.pipeline.encode_prompt(list(texts))[0]}

    def told_more(self, texts: Sequence[str], images: Sequence[Any], latents: Tensor) -> Conditions:
        """Return embeddings of prompts that are read beside the image, or its latents beside the prompt."""
        return {**self.told(texts), "image_latents": latents[:, None]}

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the modes of the autoencoder, in the scale of the transformer."""
        found: Tensor = self.pipeline._encode_vae_image(pixels.to(self.pipeline.vae.dtype), generator=None)
        return found

    def pixels(self, latents: Tensor) -> Tensor:
        """Return what the autoencoder makes of latents."""
        vae = self.pipeline.vae
        shape, dtype = (1, -1, 1, 1), vae.dtype
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(shape)
        found = latents.to(dtype) * std.to(dtype) + vae.bn.running_mean.view(shape).to(dtype)
        decoded: Tensor = vae.decode(self.pipeline._unpatchify_latents(found))[0]
        return decoded


KNOWN: dict[str, type[Surroundings]] = {"ZImagePipeline": ZImage, "Flux2KleinPipeline": Flux2Klein}
"""What is known, by the names of the pipelines' classes in diffusers."""


def load_surroundings(
    path: str, *, dtype: torch.dtype = torch.float32, vision: str | None = None, only: Sequence[str] | None = None
) -> Surroundings:
    """Load a pipeline without its transformer.

    Args:
        path: a folder or a hub id.
        dtype: of the weights.
        vision: a folder or hub id of a Qwen3-VL that reads images beside texts; None for none.
        only: the components to load; None for all but the transformer.

    Raises:
        ConfigurationError: there is no such pipeline, or nothing is known of its class.
    """
    require_extra("diffusers", extra="diffusion", needed_by="A pipeline")
    from diffusers import DiffusionPipeline

    place = str(Path(path).expanduser())
    try:
        parts = [name for name, of in DiffusionPipeline.load_config(place).items() if isinstance(of, list)]
        left = {name: None for name in parts if name == "transformer" or (only is not None and name not in only)}
        pipeline = DiffusionPipeline.from_pretrained(place, torch_dtype=dtype, **left)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"`pipeline`: given `{path}`, expected a pipeline of diffusers. It says: {shorten(error, 200)}"
        ) from error
    name = type(pipeline).__name__
    if name not in KNOWN:
        raise ConfigurationError(
            f"`pipeline`: given a `{name}`, expected one of {', '.join(KNOWN)}. For others, encode texts and images "
            "once, and name the arrays by `ArrayImages`."
        )
    return KNOWN[name](pipeline, None if vision is None else VisionReader(vision, dtype))


def padded(rows: Sequence[Tensor]) -> Conditions:
    """Return embeddings [L, D] of several lengths as `prompt_embeds` [N, L, D] and `prompt_mask` [N, L]."""
    embeds = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=embeds.device)
    return {
        "prompt_embeds": embeds,
        "prompt_mask": torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None],
    }
