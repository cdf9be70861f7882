"""Facts about an architecture that are found out once, by running the model on a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.attention import is_flash
from veto_pl.models.backbone import backbone
from veto_pl.models.modes import sampling_mode
from veto_pl.models.reading import prefixed_errors
from veto_pl.models.sharding import gathered
from veto_pl.seams import LanguageModel

CACHE_KEYWORDS = ("cache", "past_key_values")
"""What forward calls the cache of keys and values in transformers: from 5.24 on, and before."""


def cache_keyword(model: LanguageModel) -> str:
    """Return the name by which the model takes a cache and fills it; the last one where it fills none.

    A forward may swallow any name, so each is tried with one token.
    """
    from transformers import DynamicCache

    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    for name in CACHE_KEYWORDS[:-1]:
        cache = DynamicCache(config=model.model.config)
        try:
            with probing(model):
                backbone(model.model)(input_ids=token, use_cache=True, **{name: cache})
        except TypeError:  # not a name of this forward's
            continue
        if cache.get_seq_length() == 1:
            return name
    return CACHE_KEYWORDS[-1]


def reads_with_cache(model: LanguageModel, new_cache: Callable[[], Any]) -> bool:
    """Return whether a token that follows a cache of padded rows is read as in a pass over each row alone."""
    device = model.device
    ids = (torch.arange(8) % model.vocab_size).view(2, 4).to(device)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], device=device)
    cache = new_cache()
    with probing(model):
        model.next_logits(ids[:, :3], mask[:, :3], cache)
        stepped = model.next_logits(ids[:, 3:], mask, cache)
        alone = [
            model.next_logits(row[seen.bool()][None], None, new_cache()) for row, seen in zip(ids, mask, strict=True)
        ]
    return close(model, stepped, torch.cat(alone))


def reads_behind_holes(model: LanguageModel, new_cache: Callable[[], Any]) -> bool:
    """Return whether tokens behind hidden columns within a row are read as in a pass over the row without them."""
    device = model.device
    ids = (torch.arange(14) % model.vocab_size).view(2, 7).to(device)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1]], device=device)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    cache = new_cache()
    with probing(model):
        for span in (slice(0, 3), slice(3, 6), slice(6, 7)):
            stepped = model.next_logits(ids[:, span], mask[:, : span.stop], cache, places[:, span])
        alone = [
            model.next_logits(row[seen.bool()][None], None, new_cache()) for row, seen in zip(ids, mask, strict=True)
        ]
    return close(model, stepped, torch.cat(alone))


def keeps_sequences_apart(model: LanguageModel) -> bool:
    """Return whether two sequences in one row, told apart by their positions, do not see each other.

    A change of the first must leave the second as it is, to the bit, and the second must be what it is alone.
    Recurrent models, among others, let state pass.
    """
    if getattr(model.model, "_is_stateful", False):  # what transformers calls recurrent models
        return False
    first, second, other = (torch.arange(start, start + 3) % model.vocab_size for start in (0, 3, 6))
    positions = torch.arange(3).repeat(1, 2)
    try:
        packed, changed = (_hidden(model, torch.cat([head, second])[None], positions) for head in (first, other))
    except TypeError:  # a model without `position_ids`
        return False
    alone = _hidden(model, second[None], positions[:, :3])
    return torch.equal(packed[:, 3:], changed[:, 3:]) and close(model, packed[:, 3:], alone)


def architecture_errors(model: LanguageModel) -> AbstractContextManager[None]:
    """Return a context that turns whatever an architecture raises on a few tokens into one error that names it."""
    return prefixed_errors(
        f"{type(model.model).__name__} cannot be run as veto_pl runs causal language models, on token ids alone. Use "
        "another architecture."
    )


def check_causal(model: LanguageModel) -> None:
    """Raise `ConfigurationError` where a token's hidden state depends on later tokens, and so on what it predicts."""
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=model.device) % model.vocab_size
    with probing(model):
        one, other = (
            backbone(model.model)(input_ids=row[None], use_cache=False).last_hidden_state[:, :-1] for row in ids
        )
    if not close(model, one, other):
        raise ConfigurationError(
            f"{type(model.model).__name__} reads the tokens that it should predict: its hidden states depend on what "
            "comes later. Use a causal architecture; some become causal with `is_decoder: true` in their config.json."
        )


def check_head(model: LanguageModel) -> None:
    """Raise `ConfigurationError` where the head, as the loss reads it, is not what the model does.

    Some architectures scale or transform hidden states before the head, in ways of their own.
    """
    ids = torch.arange(4)[None] % model.vocab_size
    with probing(model):
        expected = model.model(input_ids=ids.to(model.device), use_cache=False).logits[..., : model.vocab_size]
        hidden = backbone(model.model)(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
        logits, _ = model.project(hidden)
    if not close(model, logits, expected.float()):
        raise ConfigurationError(
            f"{type(model.model).__name__} does something between its hidden states and its logits that veto_pl does "
            f"not know: they differ by {float((logits - expected).abs().max()):.2g}. Use another architecture."
        )


def probe_logits(model: LanguageModel) -> Tensor:
    """Return the logits [2, 8, V] of two rows of ids from all over the vocabulary, on the CPU.

    Collective where the model is sharded: call it on every rank.
    """
    ids = (torch.arange(16) * 7919 % model.vocab_size).view(2, 8).to(model.device)
    with gathered(model), probing(model):
        logits: Tensor = model.model(input_ids=ids, use_cache=False).logits
    return logits[..., : model.vocab_size].float().cpu()


def _hidden(model: LanguageModel, ids: Tensor, positions: Tensor) -> Tensor:
    device = model.device
    with probing(model):
        output = backbone(model.model)(input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def close(model: LanguageModel, tensor: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors agree within the rounding of what the model computes in, coarse in half precision."""
    tolerance = 1e-3 if examined_dtype(model) in (torch.float32, torch.float64) else 5e-2
    difference = (tensor - expected).nan_to_num(nan=0.0)  # an id that both exclude
    return bool(difference.abs().max() <= tolerance * expected.nan_to_num(neginf=0.0).abs().max())


def examined_dtype(model: LanguageModel) -> torch.dtype:
    """Return the dtype in which the model is examined: that of its weights as they are gathered, or autocast's."""
    if _takes_half_only(model):
        return torch.get_autocast_dtype(model.device.type)
    gathered = None if model.shards is None else model.shards.compute_dtype
    return gathered or model.model.dtype


@contextmanager
def probing(model: LanguageModel) -> Iterator[None]:
    """Run the block as facts about a model are found out: in sampling mode, and where it can without autocast."""
    # Float32 shows more than the run's autocast, without which flash attention would refuse it.
    with sampling_mode(model), torch.autocast(model.device.type, enabled=_takes_half_only(model)):
        yield


def _takes_half_only(model: LanguageModel) -> bool:
    return is_flash(model) and torch.is_autocast_enabled(model.device.type)
