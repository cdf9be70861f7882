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
from veto_pl.models.probes import reads_behind_holes, reads_with_cache
from veto_pl.seams import LanguageModel

Held = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer, [B, H, L, D]."""

ROOM = 64
"""Tokens that a layer makes room for at least when it is full."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a cache with room at its end: a token is written in place, and what came before is not copied."""

    is_initialized: bool
    keys: Tensor
    values: Tensor
    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append [B, H, L, D] keys and values, and return all of them."""
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
        """Repeat every row, copies side by side."""
        super().batch_repeat_interleave(repeats)
        self.room = None

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep these rows and the columns from `first` on."""
        self.keys, self.values = (held[..., first:, :].index_select(0, rows) for held in (self.keys, self.values))
        self.room = None


def room_for(size: int) -> int:
    """Return the number of tokens that a full layer makes room for when it has to hold `size` of them."""
    return size + max(ROOM, size // 4)


def _with_room(held: Tensor, size: int) -> Tensor:
    buffer = held.new_empty((*held.shape[:-2], room_for(size), held.shape[-1]))
    buffer[..., : held.shape[-2], :] = held
    return buffer


def new_cache(model: LanguageModel) -> Any:
    """Return an empty cache with a layer for each of the model's."""
    cache = DynamicCache(config=model.model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_drop_columns(cache: Any) -> bool:
    """Return whether columns that are padding in every row may go: sliding windows count them."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def keep(cache: Any, rows: Tensor, first: int, leaving: Tensor | None = None) -> Held:
    """Keep these rows of the batch ([K] int64) and drop `first` columns, 0 unless `can_drop_columns` allows more.

    Returns:
        What it held of the rows `leaving` ([G] int64); nothing of any layer where that is None.
    """
    left: Held = []
    for layer in cache.layers:
        left += rows_of(layer, leaving)
        if isinstance(layer, GrowingLayer):
            layer.keep(rows, first)
        else:
            layer.batch_select_indices(rows)
    return left


def rows_of(layer: Any, rows: Tensor | None) -> Held:
    """Return copies of the keys and values of these rows ([K] int64) of a layer; nothing where None is asked for."""
    return [] if rows is None else [(layer.keys.index_select(0, rows), layer.values.index_select(0, rows))]


def merge_caches(caches: Sequence[Any]) -> Any:
    """Merge the rows of all caches into one, one after another; shorter ones are padded on the left."""
    first, *others = caches
    if others:
        for layer, *more in zip(*(cache.layers for cache in caches), strict=True):
            layer.keys = _stack_padded([part.keys for part in (layer, *more)])
            layer.values = _stack_padded([part.values for part in (layer, *more)])
    return first


def _stack_padded(parts: Sequence[Tensor]) -> Tensor:
    width = max(part.shape[-2] for part in parts)
    return torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts])


_obstacles: WeakKeyDictionary[LanguageModel, str] = WeakKeyDictionary()
_resumable: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()


def can_resume(model: LanguageModel) -> bool:
    """Return whether rows can be read on behind a cache of theirs, found out once: columns are hidden in it then."""
    if model not in _resumable:
        whole = not obstacle(model) and can_drop_columns(new_cache(model))
        _resumable[model] = whole and reads_behind_holes(model, lambda: new_cache(model))
    return _resumable[model]


def obstacle(model: LanguageModel) -> str:
    """Return why the decode loop cannot run this model, or an empty string; found out once, on a few tokens."""
    if model not in _obstacles:
        _obstacles[model] = cache_obstacle(model) or _batching_obstacle(model)
    return _obstacles[model]


def cache_obstacle(model: LanguageModel) -> str:
    """Return what keeps the model from filling a cache of the decode loop, or an empty string.

    No value is looked at.
    """
    network = model.model
    if getattr(network.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if getattr(network, "_is_stateful", False):
        return "it remembers a recurrent state instead of keys and values"
    kinds = {type(layer) for layer in new_cache(model).layers} - {GrowingLayer, DynamicSlidingWindowLayer}
    if kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        return f"its cache has layers that the loop does not know ({names})"
    return _forward_obstacle(model)


def _forward_obstacle(model: LanguageModel) -> str:
    """Return why the model cannot read one token as the loop gives it and fill the cache, or an empty string."""
    cache = new_cache(model)
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    try:
        with sampling_mode(model):
            model.next_logits(token, torch.ones_like(token), cache)
    except TypeError as error:
        return f"its forward does not take a mask, positions and a cache ({error})"
    if cache.get_seq_length() != 1:
        return "it ignores the cache that it is given"
    written = all(layer.is_initialized for layer in cache.layers)
    return "" if written else "it has layers that write no keys and values for a text"


def _batching_obstacle(model: LanguageModel) -> str:
    same = reads_with_cache(model, lambda: new_cache(model))
    return "" if same else "with a cache it reads a row beside a longer one otherwise than alone"
