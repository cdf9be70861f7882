"""A cache whose tensors have their size and place for a whole rollout, so that every token is the same kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

ALIGNED = 8
"""Columns of a cache are a multiple of this: fused attention would otherwise pad the mask in every layer."""


class FixedLayer(StaticLayer):  # type: ignore[misc]
    """A layer of a cache that writes a token in place, at an index that is a number of the device.

    The static layer of transformers counts on its own, in three more kernels of each layer; here all layers share one
    index, which whoever decodes moves on. A layer with a sliding window has all columns too, and the mask hides what is
    outside of the window.

    Args:
        layer: what has read the prompts; its tensors are copied.
        columns: of the whole rollout.
        width: columns in use. A layer with a window may hold the last of them only.
        place: [1] int64, the column that the next token is written to.
    """

    def __init__(self, layer: Any, columns: int, width: int, place: Tensor) -> None:
        super().__init__(max_cache_len=columns)
        self.place = place
        self.keys, self.values = (_widened(held, columns, width) for held in (layer.keys, layer.values))
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, 1, D] keys and values, and return those of all columns."""
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Tensor:
        """Return the number of tokens before the next one, which only the device knows."""
        return self.place[0]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows ([K] int64), in new tensors."""
        self.keys, self.values = (held.index_select(0, rows) for held in (self.keys, self.values))


def fixed_columns(width: int, new_tokens: int) -> int:
    """Return the columns of a cache that holds `width` tokens and is to hold `new_tokens` more.

    Example:
        >>> fixed_columns(10, 12)
        24
    """
    return -(-(width + new_tokens) // ALIGNED) * ALIGNED


def fix_cache(cache: Any, columns: int, width: int, place: Tensor) -> None:
    """Give every layer of a cache that has read prompts its final size; one layer is there twice at a time."""
    for i, layer in enumerate(cache.layers):
        cache.layers[i] = FixedLayer(layer, columns, width, place)


def fixed_mask(mask: Tensor, columns: int) -> Tensor:
    """Return a mask [B, columns] that hides the columns that nothing is written to yet, from [B, W] int64."""
    return torch.nn.functional.pad(mask, (0, columns - mask.shape[1]))


def _widened(held: Tensor, columns: int, width: int) -> Tensor:
    """Return the columns of `held`, [B, H, W, D], as the last up to `width`; others are 0, as hidden ones must be."""
    whole = held.new_zeros((*held.shape[:-2], columns, held.shape[-1]))
    whole[..., width - held.shape[-2] : width, :] = held
    return whole
