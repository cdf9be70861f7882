"""How models of diffusers are asked for a velocity: what they call their arguments, and how they count time."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from veto_pl.core.bounds import Positive
from veto_pl.core.part import Part
from veto_pl.diffusion.trajectories import Condition
from veto_pl.exceptions import ConfigurationError

Clock = Literal["sigma", "time"]
"""What a model is told of the time: how much noise there is, or how far the image is."""


class ModelCall(Part, ABC):
    """How a model is asked for its velocity, image minus noise, at times from 0, the noise, to 1, the image."""

    @abstractmethod
    def __call__(self, model: Any, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity.

        Args:
            model: a transformer of diffusers.
            z: [B, ...] states in the model's dtype.
            t: [B] times in [0, 1].
            condition: [B, ...] by name.

        Returns:
            [B, ...] as `z`.

        Raises:
            ConfigurationError: the condition is not what the model reads.
        """


@dataclass(frozen=True)
class ImageCall(ModelCall):
    """A model that takes images as they are, `hidden_states` [B, C, H, W], and conditions under their own names.

    Args:
        clock: `sigma` for models that read 1 - t and predict noise minus image, as SD3 does; `time` for those that
            read t and predict image minus noise.
        scale: what the model's time is multiplied by; SD3 counts to 1000.
    """

    clock: Clock = "sigma"
    scale: Positive = 1000.0

    def __call__(self, model: Any, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        known = inspect.signature(model.forward).parameters
        takes_all = any(one.kind is one.VAR_KEYWORD for one in known.values())
        if not takes_all and (unknown := sorted(condition.keys() - known.keys())):
            raise ConfigurationError(
                f"`{type(model).__name__}` takes no `{unknown[0]}`. Name the conditions of `data.images` as its "
                f"forward does: {', '.join(known)}."
            )
        sigma = self.clock == "sigma"
        clock = self.scale * (1 - t if sigma else t)
        found: Tensor = model(hidden_states=z, timestep=clock, return_dict=False, **condition)[0]
        return -found if sigma else found


@dataclass(frozen=True)
class ZImageCall(ModelCall):
    """Z-Image: latents and prompts in lists, time from noise to image, a velocity of image minus noise.

    Conditions: `prompt_embeds` [B, L, D] and `prompt_mask` [B, L] bool, as prompts differ in length.
    """

    def __call__(self, model: Any, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        embeds, mask = _named(condition, "prompt_embeds", "prompt_mask")
        prompts = [row[kept] for row, kept in zip(embeds, mask, strict=True)]
        found = model(list(z.unsqueeze(2)), t, prompts, return_dict=False)[0]
        return torch.stack(list(found)).squeeze(2)


@dataclass(frozen=True)
class Flux2Call(ModelCall):
    """FLUX.2: latents as rows of tokens with places, time from image to noise, a velocity of noise minus image.

    Conditions: `prompt_embeds` [B, L, D] and, where a model is shown other images, `image_latents` [B, M, C, h, w]. As
    in the pipeline, image m stands at the places 10 (m + 1) of the first axis.
    """

    def __call__(self, model: Any, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        (embeds,) = _named(condition, "prompt_embeds", others=("image_latents",))
        tokens, places = z.flatten(2).transpose(1, 2), [_places(z, 0)]
        shown = condition.get("image_latents")
        images = [] if shown is None else [image.to(z.dtype) for image in shown.unbind(1)]
        packed = [tokens, *(image.flatten(2).transpose(1, 2) for image in images)]
        places += [_places(image, 10 * (number + 1)) for number, image in enumerate(images)]
        words = torch.zeros(embeds.shape[1], 4, dtype=torch.int64, device=z.device)
        words[:, 3] = torch.arange(embeds.shape[1], device=z.device)
        found: Tensor = model(
            hidden_states=torch.cat(packed, dim=1), encoder_hidden_states=embeds, timestep=1 - t,
            img_ids=torch.cat(places), txt_ids=words, return_dict=False,
        )[0]  # fmt: skip
        return -found[:, : tokens.shape[1]].transpose(1, 2).reshape(z.shape)


KNOWN: dict[str, ModelCall] = {
    "SD3Transformer2DModel": ImageCall(),
    "ZImageTransformer2DModel": ZImageCall(),
    "Flux2Transformer2DModel": Flux2Call(),
}
"""How models are called, by the names of their classes in diffusers."""


def call_of(model: Any) -> ModelCall:
    """Return how a model is called; raise `ConfigurationError` where that is not known of its class."""
    name = type(model).__name__
    if name not in KNOWN:
        raise ConfigurationError(
            f"It is not known how `{name}` is called, only of {', '.join(KNOWN)}. Name `call` of the source: "
            "`ImageCall` with its `clock` and `scale`, or a `ModelCall` of your own."
        )
    return KNOWN[name]


def _named(condition: Condition, *names: str, others: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
    if not set(names) <= condition.keys() <= {*names, *others}:
        optional = f" and perhaps {', '.join(others)}" if others else ""
        raise ConfigurationError(
            f"The conditions of such a model are {', '.join(names)}{optional}, "
            f"got {', '.join(sorted(condition)) or 'none'}."
        )
    return tuple(condition[name] for name in names)


def _places(latents: Tensor, first: int) -> Tensor:
    """Return the places of the tokens of [B, C, h, w], [h * w, 4]: image, row, column, 0."""
    height, width = latents.shape[-2:]
    axes = [torch.tensor([first]), torch.arange(height), torch.arange(width), torch.arange(1)]
    return torch.cartesian_prod(*axes).to(latents.device)
