"""The keys and values of the decode loop, and which models it can keep them for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from veto_pl.models.modes import sampling_mode
from veto_pl.models.probes import reads_with_cache
from veto_pl.seams import LanguageModel

ROOM = 64
"""Tokens that a layer makes room for at least when it is full."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a cache with room at its end: a token is written in place, and what came before is not copied."""

    is_initialized: bool
    keys: Tensor
    values: Tensor
    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends [B, H, L, D] keys and values, and returns all of them."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            self.room = (_with_room(self.keys, end), _with_room(self.values, end))
        for buffer, new in zip(self.room, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.room)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row, copies side by side."""
        super().batch_repeat_interleave(repeats)
        self.room = None

    def keep(self, rows: Tensor, first: int) -> None:
        """Keeps these rows and the columns from `first` on."""
        self.keys, self.values = (held[..., first:, :].index_select(0, rows) for held in (self.keys, self.values))
        self.room = None


def room_for(size: int) -> int:
    """How many places a layer makes that has to hold `size` tokens and is full."""
    return size + max(ROOM, size // 4)


def _with_room(held: Tensor, size: int) -> Tensor:
    buffer = held.new_empty((*held.shape[:-2], room_for(size), held.shape[-1]))
    buffer[..., : held.shape[-2], :] = held
    return buffer


def new_cache(model: LanguageModel) -> Any:
    """An empty cache with a layer for each of the model's."""
    cache = DynamicCache(config=model.model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_drop_columns(cache: Any) -> bool:
    """Whether columns that are padding in every row may go: sliding windows count them."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def keep(cache: Any, rows: Tensor, first: int) -> None:
    """Keeps these rows of the batch ([K] int64); `first` columns go, where `can_drop_columns` allows more than 0."""
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.keep(rows, first)
        else:
            layer.batch_select_indices(rows)


def merged(caches: Sequence[Any]) -> Any:
    """One cache with the rows of all of them, one after another; shorter ones are padded on the left."""
    first, *others = caches
    if others:
        for layer, *more in zip(*(cache.layers for cache in caches), strict=True):
            layer.keys = _stacked([part.keys for part in (layer, *more)])
            layer.values = _stacked([part.values for part in (layer, *more)])
    return first


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    width = max(part.shape[-2] for part in parts)
    return torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts])


_obstacles: WeakKeyDictionary[LanguageModel, str] = WeakKeyDictionary()


def obstacle(model: LanguageModel) -> str:
    """Return why the decode loop cannot run this model, or an empty string. It is found out once, on a few tokens."""
    if model not in _obstacles:
        _obstacles[model] = unfit(model) or _misreads(model)
    return _obstacles[model]


def unfit(model: LanguageModel) -> str:
    """Return what keeps the model from filling a cache of the loop's, or an empty string. No value is looked at."""
    network = model.model
    if getattr(network.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if getattr(network, "_is_stateful", False):
        return "it remembers a recurrent state instead of keys and values"
    kinds = {type(layer) for layer in new_cache(model).layers} - {GrowingLayer, DynamicSlidingWindowLayer}
    if kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        return f"its cache has layers that the loop does not know ({names})"
    return _refuses(model)


def _refuses(model: LanguageModel) -> str:
    """One token, to see that the model takes what the loop gives, and fills the cache."""
    cache = new_cache(model)
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    try:
        with sampling_mode(model):
            model.next_logits(token, torch.ones_like(token), cache)
    except TypeError as error:
        return f"its forward does not take a mask, positions and a cache ({error})"
    if cache.get_seq_length() != 1:
        return "it ignores the cache that it is given"
    written = all(layer.is_initialized for layer in cache.layers)
    return "" if written else "it has layers that write no keys and values for a text"


def _misreads(model: LanguageModel) -> str:
    same = reads_with_cache(model, lambda: new_cache(model))
    return "" if same else "with a cache it reads a row beside a longer one otherwise than alone"
