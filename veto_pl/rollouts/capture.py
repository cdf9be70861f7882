"""Which models a step of the decode loop is recorded for, and why others are decoded kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.host_reads import refused_host_reads
from veto_pl.models.known_masks import known_rows
from veto_pl.models.probes import close, probing
from veto_pl.models.vision import decoding_modules
from veto_pl.rollouts.recording import RECORDERS, Recorder
from veto_pl.seams import LanguageModel, Setup

Capture = Literal["auto"] | bool
"""Whether steps are recorded; `auto` records where the device and the models allow it."""

FEWEST_TOKENS = 16
"""Completions that are shorter are not worth a recording, which takes as long as about three tokens as usual."""

MASKED = ("sdpa", "eager")
"""Attention that reads a mask over all columns. Flash attention would read keys that are not written yet."""

_probed: WeakKeyDictionary[LanguageModel, str] = WeakKeyDictionary()
_told: WeakKeyDictionary[LanguageModel, str] = WeakKeyDictionary()


def recorder_for(
    writers: Sequence[LanguageModel], device: torch.device, capture: Capture, new_tokens: int
) -> Recorder | None:
    """Return what records the steps of these writers, or None where they are decoded kernel by kernel.

    Raises:
        ConfigurationError: `capture` is True, and the device or a model cannot do it.
    """
    make = RECORDERS.get(device.type)
    if capture is False or (capture == "auto" and (make is None or new_tokens < FEWEST_TOKENS)):
        return None
    if make is None:
        raise _refusal(no_recorder(device))
    for model in writers:
        if reason := capture_obstacle(model):
            tell_obstacle(model, reason, capture)
            return None
    return make(device)


def capture_obstacle(model: LanguageModel) -> str:
    """Return why the model's steps cannot be recorded, or an empty string. It is tried on a few tokens, once."""
    if reason := structure_obstacle(model):
        return reason
    if model not in _probed:
        _probed[model] = _step_obstacle(model, _reads_otherwise)
    return _probed[model]


def planned_obstacle(model: LanguageModel) -> str:
    """Return the same for a model without weights, as far as it does not depend on values."""
    return structure_obstacle(model) or _step_obstacle(model, lambda *_: False)


def structure_obstacle(model: LanguageModel) -> str:
    """Return what speaks against recording the model before it is tried, or an empty string."""
    if model.shards is not None:
        return "its weights are spread over the ranks (`fsdp2`), and what gathers them cannot be recorded"
    if not model.stays_in_place:
        return "its weights come to the device anew each time (`Offloaded`), and a recording knows their first place"
    if torch.are_deterministic_algorithms_enabled():
        return "`trainer.deterministic` sorts for every write by an index, which recordings are known to fail at"
    attention = getattr(model.model.config, "_attn_implementation", None) or "eager"
    if attention not in MASKED:
        return f"its attention, `{attention}`, takes no mask over columns that are not written yet"
    for name, module in (("", model), *((f"model.{name}", module) for name, module in decoding_modules(model.model))):
        if module._forward_hooks or module._forward_pre_hooks:  # there is no public getter
            return f"`{name}` has a hook, whose Python would run for the first tokens only"
    return ""


def unrecorded(setup: Setup) -> str:
    """Return why nothing can be recorded in a run, as far as its trainer tells, or an empty string."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    strategy = setup.trainer.get("strategy")
    if strategy == "fsdp2" or isinstance(strategy, ModelParallelStrategy):
        return "`fsdp2` spreads the weights over the ranks"
    device = getattr(strategy, "root_device", None)
    return "" if device is None or device.type in RECORDERS else no_recorder(device)


def no_recorder(device: torch.device) -> str:
    """Return in words that nothing can be recorded on a device."""
    return f"a `{device.type}` device cannot record, only those of {', '.join(RECORDERS)} can"


def tell_obstacle(model: LanguageModel, reason: str, capture: Capture) -> None:
    """Say once for a model why it is not recorded, or raise `ConfigurationError` where that was asked for."""
    told = f"{type(model.model).__name__} cannot be recorded: {reason}"
    if capture is True:
        raise _refusal(told)
    if _told.get(model) != reason:
        from lightning.pytorch.utilities import rank_zero_info

        _told[model] = reason
        rank_zero_info(f"{told}. Its tokens are decoded kernel by kernel, which is slower on a GPU.")


def recording_failed(writers: Sequence[LanguageModel], capture: Capture) -> Callable[[Exception], None]:
    """Return what is told of an error while a step was recorded: it warns, and the models are not recorded again.

    Where `capture` is True it raises `ConfigurationError` instead.
    """

    def failed(error: Exception) -> None:
        reason = f"recording a step raised {type(error).__name__} ({str(error)[:300]})"
        if capture is True:
            raise _refusal(reason) from error
        from lightning.pytorch.utilities import rank_zero_warn

        for model in writers:
            _probed[model] = reason
        rank_zero_warn(
            f"A step of the decode loop was not recorded: {reason}. From here on tokens are decoded kernel by kernel. "
            "Should the device raise errors after this, set `capture: false` on the engine `DecodeLoop`."
        )

    return failed


def _refusal(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"`DecodeLoop.capture` is true, and nothing can be recorded: {reason}. Set `capture: auto`, which decodes "
        "kernel by kernel where it has to."
    )


Differs = Callable[[LanguageModel, Tensor, Tensor], bool]


def _reads_otherwise(model: LanguageModel, found: Tensor, expected: Tensor) -> bool:
    return not close(model, found, expected)


def _step_obstacle(model: LanguageModel, differs: Differs) -> str:
    """Read a token behind two rows, one of them padded, as a recorded step would; return what goes wrong."""
    from veto_pl.rollouts.fixed_cache import fix_cache, fixed_columns, fixed_mask
    from veto_pl.rollouts.kv_cache import new_cache

    device = next(model.parameters()).device
    ids = (torch.arange(8, device=device) % model.vocab_size).view(2, 4)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    position, place = mask.sum(1, keepdim=True) - 1, torch.full((1,), 3, device=device)
    growing, fixed = new_cache(model), new_cache(model)
    with probing(model), known_rows(packed=False, padded=True):
        for cache in (growing, fixed):
            model.next_logits(ids[:, :3], mask[:, :3], cache)
        expected = model.next_logits(ids[:, 3:], mask, growing, position)
        columns = fixed_columns(4, 4)
        fix_cache(fixed, columns, 3, place)
        try:
            with refused_host_reads():
                found = model.next_logits(ids[:, 3:], fixed_mask(mask, columns), fixed, position)
        except Exception as error:  # whatever an architecture does with a cache of another kind
            return f"a step with a cache of fixed size does not work ({type(error).__name__}: {str(error)[:300]})"
    return "with a cache of fixed size it reads a token otherwise" if differs(model, found, expected) else ""
