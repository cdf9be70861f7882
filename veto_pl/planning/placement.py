"""How `trainer` spreads a run over devices, and what that does to the memory of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from veto_pl.exceptions import ConfigurationError
from veto_pl.training.fsdp import FullyShard

STRATEGIES = ("auto", "single", "ddp", "fsdp2")


@dataclass(frozen=True)
class Placement:
    """A strategy.

    Args:
        kind: `single`, `ddp` or `fsdp2`.
        ranks: devices of the run.
        buckets: whether DDP holds a second copy of the gradients.
        gather_student: whether a sharded student is whole while it samples.
        gather_teacher: the same for the teacher.
    """

    kind: str = "single"
    ranks: int = 1
    buckets: bool = True
    gather_student: bool = True
    gather_teacher: bool = False

    @property
    def shards(self) -> int:
        """Over how many devices weights, gradients and optimizer state are spread."""
        return self.ranks if self.kind == "fsdp2" else 1

    def sharded(self) -> Placement:
        """Return the placement with FSDP2 on the same devices."""
        return replace(self, kind="fsdp2")

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> Placement:
        """Return the placement that the settings of a trainer describe; `devices: auto` counts as one device.

        Raises:
            ConfigurationError: the strategy is not one that can be planned.
        """
        ranks = _devices(trainer.get("devices")) * int(trainer.get("num_nodes") or 1)
        strategy = trainer.get("strategy") or "auto"
        if isinstance(strategy, FullyShard):
            gather = strategy.gather
            return cls("fsdp2", ranks, gather_student=gather["student"], gather_teacher=gather["teacher"])
        if isinstance(strategy, DDPStrategy):
            return cls("ddp", ranks, buckets=not strategy._ddp_kwargs.get("gradient_as_bucket_view", False))
        if strategy == "fsdp2":
            return cls("fsdp2", ranks)
        plain = isinstance(strategy, SingleDeviceStrategy) or strategy in ("auto", "single_device")
        if plain or str(strategy).startswith("ddp"):
            return cls("ddp" if ranks > 1 else "single", ranks)
        raise ConfigurationError(
            f"`trainer.strategy` is {strategy!r}, which cannot be planned. Plan with `auto`, `ddp` or `fsdp2`."
        )


def _devices(devices: Any) -> int:
    if isinstance(devices, list | tuple):
        return max(len(devices), 1)
    text = str(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isdigit() and int(text) > 0 else 1
