"""Models whose weights are spread over the ranks (FSDP2): each rank keeps a part of every tensor.

Gathering a layer is a collective, so all ranks have to ask for the same layers in the same order.

A rank that needs a layer asks all ranks for it, so every rank has to ask for the same layers in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from veto_pl.core.ranks import Sharding
from veto_pl.models.layers import decoder_layers
from veto_pl.seams import LanguageModel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(model: LanguageModel, sharding: Sharding) -> None:
    """Spread the weights over the ranks: one unit for each decoder layer, one for embeddings, last norm and head."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Autocast would cast gathered weights once more, and keep those copies of all layers until the backward pass.
    policy = MixedPrecisionPolicy(sharding.compute_dtype, None if sharding.compute_dtype is None else torch.float32)
    for layer in decoder_layers(model.model)[1]:
        fully_shard(layer, mesh=sharding.mesh, mp_policy=policy)
    fully_shard(model, mesh=sharding.mesh, mp_policy=policy)
    model.shards = sharding
    gather_in_methods(model)


def gather_in_methods(model: LanguageModel) -> None:
    """Let the methods that run layers beside `forward` gather them too, which FSDP2 does in `forward` only."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    for method in ("next_logits", "probe"):
        vars(model).pop(method, None)  # that of the model whose copy this is
        register_fsdp_forward_method(model, method)


@contextmanager
def gathered(model: LanguageModel, *, head_only: bool = False) -> Iterator[None]:
    """Hold the whole weights on every rank, or those outside the layers; bring offloaded ones to the device.

    Collective: enter it on every rank.

    Inside, weights can be read as ordinary tensors and the model runs without communication. They must not be written,
    and the context must not be nested.
    """
    if model.shards is None:
        with model.present(head_only=head_only):
            yield
        return
    # The root unit, which is first, holds what is outside of the layers: embeddings, last norm and head.
    units = _units(model)[:1] if head_only else _units(model)
    _keep_after_forward(units[1:], True)
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
        _keep_after_forward(units[1:], False)


@contextmanager
def gathered_to_sample(*models: LanguageModel) -> Iterator[Sharding | None]:
    """Gather the models that are to be whole in a rollout. Collective: enter it on every rank.

    Yields:
        The ranks that have to keep in step while they sample, or None where each can go its own way.
    """
    in_step = [model.shards for model in models if model.shards is not None and not model.shards.whole_to_sample]
    with ExitStack() as stack:
        for model in models:
            if model.shards is not None and model.shards.whole_to_sample:
                stack.enter_context(gathered(model))
        yield in_step[0] if in_step else None


@contextmanager
def resharded(model: LanguageModel) -> Iterator[None]:
    """Let go of gathered weights, so that what is written in the block is written to the parts that the ranks keep."""
    if model.shards is not None:
        for unit in _units(model):
            unit.reshard()
    yield


def full_weights(model: LanguageModel) -> dict[str, Tensor]:
    """Return the weights of `model.model` by name: on the CPU of the first rank, and nothing on the others.

    Collective: call it on every rank.

    Every rank has to call it. Tied weights have one name. Without sharding it is the model's own state.
    """
    if model.shards is None:
        return dict(model.model.state_dict())
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    tied = set(model.state_dict()) - {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name.removeprefix("model."): cast(Tensor, value) for name, value in state.items() if name not in tied}


def weights_version(model: LanguageModel) -> int:
    """Return a number that grows whenever a weight is written in place, by an optimizer or anybody else.

    It is that of this rank's parts, and the same on all ranks as long as they write alike.
    """
    with resharded(model):
        return sum(local_part(weight)._version for weight in model.parameters())


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds; all of it without sharding."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def sum_shards(tensor: Tensor) -> Tensor:
    """Add up over the ranks a number that was computed on shards. Collective if the tensor is sharded."""
    return whole(tensor)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that the ranks share. Collective if the tensor is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _units(model: LanguageModel) -> list[FSDPModule]:
    """Return the FSDP2 units of the model, the root first."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _keep_after_forward(units: list[FSDPModule], keep: bool) -> None:
    for unit in units:
        unit.set_reshard_after_forward(not keep, recurse=False)
