"""How a model reads images: the ids that stand for them, what its forward takes, and at which positions they stand."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from veto_pl.core.transfer import sent
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models.backbone import backbone
from veto_pl.seams.media import Media

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PLACEHOLDER = re.compile(r"(image|video|audio|vision|boi|eoi|boa|eoa)\w*_token_(id|index)")
"""Fields of configurations that name an id which stands for a picture, a film or a sound, or for an end of one."""
KINDS = {1: re.compile(r"image_token_(id|index)"), 2: re.compile(r"video_token_(id|index)")}
"""What transformers calls an image and a video among the types of tokens; text is 0."""
NESTED = ("idefics2", "idefics3", "smolvlm")
"""Architectures whose forward takes the images of a batch as [rows, images, ...]: here they are those of one row."""
MISMATCHES = ("do not match", "mismatch", "Number of elements of source")
"""What libraries say where a text has more or fewer placeholders than the images have features."""


def placeholder_ids(config: PretrainedConfig, vocab_size: int) -> tuple[int, ...]:
    """Return, in ascending order, the ids below `vocab_size` that stand for something else than text."""
    found = {value for name, value in vars(config).items() if PLACEHOLDER.fullmatch(name)}
    return tuple(sorted(i for i in found if isinstance(i, int) and 0 <= i < vocab_size))


def reads_images(model: PreTrainedModel) -> bool:
    """Return whether the forward of the model takes the pixels of images."""
    return "pixel_values" in _parameters(backbone(model).forward)


def image_inputs(model: PreTrainedModel, input_ids: Tensor, media: Media) -> dict[str, Any]:
    """Return what the forward takes beside ids [B, L], of rows with these images.

    Raises:
        ConfigurationError: the model reads text only, or takes other features than these.
    """
    takes, features = _parameters(backbone(model).forward), media.features()
    if not reads_images(model):
        raise ConfigurationError(
            f"{type(model).__name__} reads text only, and a row has an image. Take a model that reads images; of a "
            "teacher, take the images out of what it reads (`context: WithoutImages`), or route such rows to another "
            "one (`panel: Routed`)."
        )
    if unknown := sorted(set(features) - takes):
        raise ConfigurationError(
            f"{type(model).__name__} takes no `{unknown[0]}` of images. They were made by the processor of another "
            f"architecture: use that of {type(model).__name__}."
        )
    if model.config.model_type in NESTED:
        features = {name: tensor[None] for name, tensor in features.items()}
    types = _token_types(model.config, input_ids)
    return {**features, **{name: types for name in ("mm_token_type_ids", "token_type_ids") if name in takes}}


def image_positions(model: PreTrainedModel, input_ids: Tensor, mask: Tensor | None, media: Media) -> Tensor | None:
    """Return the positions at which the model reads rows with images; None where they are counted as those of text.

    They are computed on the host, which is asked for the ids once.

    Args:
        model: of transformers.
        input_ids: [B, L] int64.
        mask: [B, L], 0 on padding, or None where there is none.
        media: the images of the B rows.

    Returns:
        [3, B, L] int64 on the device of the ids: time, height and width (M-RoPE).
    """
    index = cast("Callable[..., tuple[Tensor, Tensor]] | None", getattr(backbone(model), "get_rope_index", None))
    if index is None:
        return None
    ids, seen = input_ids.cpu(), (torch.ones_like(input_ids) if mask is None else mask).cpu().long()
    positions = (seen.cumsum(1) - 1).clamp_min(0).expand(3, -1, -1).clone()
    takes = _parameters(index)
    for row, features in enumerate(media.of_rows):
        if features:
            grids = {name: tensor.cpu() for name, tensor in features.items() if name in takes}
            own = {"input_ids": ids[row, None], "attention_mask": seen[row, None]}
            if "mm_token_type_ids" in takes:  # as later versions of transformers ask for
                own["mm_token_type_ids"] = _token_types(model.config, ids[row, None])
            with mismatch_errors(StopIteration, IndexError):
                positions[:, row] = index(**own, **grids)[0][:, 0]
    return sent(positions, input_ids.device)


@contextmanager
def mismatch_errors(*fewer: type[Exception]) -> Iterator[None]:
    """Turn what transformers raises where placeholders and images do not belong together into a `DataError`.

    Args:
        fewer: what is raised in the block where there are fewer images, whatever it says.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, ValueError | RuntimeError)
        if not isinstance(error, fewer) and not (known and any(words in str(error) for words in MISMATCHES)):
            raise
        said = " ".join(str(error).split()) or "there are fewer images"
        raise DataError(
            f"The placeholders of a batch are not those of its images: {said}. A text of the "
            "run has lost or gained some, or another processor has made the images."
        ) from error


@contextmanager
def positions_forgotten(model: PreTrainedModel) -> Iterator[None]:
    """Let `generate` know no positions of an earlier batch, and leave none of its own behind."""
    owner: Any = backbone(model)
    try:
        if hasattr(owner, "rope_deltas"):
            owner.rope_deltas = None
        yield
    finally:
        if hasattr(owner, "rope_deltas"):
            owner.rope_deltas = None


def kept_in_graph(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return hidden states that depend on all weights that read images, by nothing.

    So these have a gradient, of zeros, where a batch has no image or a layer is not read: ranks expect gradients of the
    same weights from each other, whoever of them has images.
    """
    if not torch.is_grad_enabled():
        return hidden
    nothing = [weight.flatten()[:0].sum() for weight in image_weights(model) if weight.requires_grad]
    return hidden + torch.stack(nothing).sum().to(hidden.dtype) if nothing else hidden


def image_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the weights beside the text's decoder and head, of tower and projector; none where it reads text only."""
    if not reads_images(model):
        return []
    text = {id(weight) for part in (model.get_decoder(), model.get_output_embeddings()) for weight in part.parameters()}
    return [weight for weight in model.parameters() if id(weight) not in text]


def decoding_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield, with their names, the modules that read a token of text: all but those that read images."""
    if not reads_images(model):
        yield from model.named_modules()
        return
    decoder = model.get_decoder()
    text = {id(module) for part in (decoder, model.get_output_embeddings()) for module in part.modules()}
    place = next(name for name, module in model.named_modules() if module is decoder)
    for name, module in model.named_modules():
        if id(module) in text or name == "" or place.startswith(f"{name}."):
            yield name, module


def _token_types(config: PretrainedConfig, input_ids: Tensor) -> Tensor:
    """Return the type of each token, [B, L] int64: 0 text, 1 image, 2 video."""
    types = torch.zeros_like(input_ids)
    for kind, pattern in KINDS.items():
        for name, value in vars(config).items():
            if pattern.fullmatch(name) and isinstance(value, int):
                types = types.masked_fill(input_ids == value, kind)
    return types


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)
