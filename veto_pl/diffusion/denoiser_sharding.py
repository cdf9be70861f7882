"""Denoising models whose weights are spread over the ranks (FSDP2)."""

from __future__ import annotations

import torch

from veto_pl.core.ranks import Sharding
from veto_pl.diffusion.denoiser import Denoiser
from veto_pl.exceptions import ConfigurationError


def shard_denoiser(denoiser: Denoiser, sharding: Sharding) -> None:
    """Spread the weights over the ranks: one unit for each block of the transformer, one for what is around them.

    Blocks are gathered as they run, in every step of sampling; `gather_student` of the strategy is not looked at.
    Collective: call it on every rank.

    Raises:
        ConfigurationError: diffusers names no blocks of such a model, or its weights have several dtypes.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model, name = denoiser.model, type(denoiser.model).__name__
    kinds = set(getattr(model, "_no_split_modules", None) or ())  # private: the blocks, by the names of their classes
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise ConfigurationError(
            f"`trainer.strategy`: diffusers names no blocks of `{name}`, so it is not sharded. Use ddp."
        )
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    if len(dtypes) > 1:
        raise ConfigurationError(
            f"`trainer.strategy`: a sharded model has one dtype, got {' and '.join(dtypes)}. Set `dtype: float32` of "
            "its source, with `trainer.precision: bf16-mixed`, or use ddp."
        )
    policy = MixedPrecisionPolicy(sharding.compute_dtype, None if sharding.compute_dtype is None else torch.float32)
    for block in blocks:
        fully_shard(block, mesh=sharding.mesh, mp_policy=policy)
    fully_shard(model, mesh=sharding.mesh, mp_policy=policy)
    denoiser.shards = sharding
