"""Frozen models whose weights rest in the memory of the host, and are on the device while they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from veto_pl.core.mistakes import Mistake
from veto_pl.core.part import Setup
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.initialisation import TINY, RandomWeights
from veto_pl.models.trainable import quantisation
from veto_pl.models.wrapping import Wrapping
from veto_pl.seams.models import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROLES = ("model.teacher", "model.reference")


@dataclass(frozen=True)
class Offloaded(Wrapping):
    """A teacher or reference whose weights rest in pinned memory of the host between scorings and rollouts.

    On the device there is all of it while it reads or writes, its head alone while the losses are formed, and nothing
    of it in the student's backward pass and the optimizer step. A micro-batch copies the weights to the device once,
    and the head once more; nothing is copied back, for frozen weights do not change. Each rank of a node has a copy of
    its own in the host's memory.

    Args:
        source: the model.
    """

    offloads = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source.moves:
            raise ConfigurationError(
                f"`Offloaded.source` is a `{type(self.source).__name__}`, whose weights change after every step. They "
                "stay on the device: leave `Offloaded` out."
            )

    @classmethod
    def examples(cls) -> tuple[Offloaded, ...]:
        return (cls(RandomWeights(dimensions=TINY)),)

    def requirements(self, setup: Setup, path: str) -> Iterable[Mistake]:
        """Check that it is a frozen model, whole on each rank, whose weights are plain numbers."""
        strategy = setup.trainer.get("strategy")
        if path not in ROLES:
            yield Mistake(path, "`Offloaded`", f"it as {' or '.join(f'`{role}`' for role in ROLES)}, around the "
                          "others", "What is trained stays on the device.")  # fmt: skip
        if strategy == "fsdp2" or getattr(strategy, "shards_models", False):
            yield Mistake(path, "`Offloaded` under `fsdp2`", "whole weights on each rank", "Sharded weights are parts "
                          "that all ranks gather: leave `Offloaded` out, or use `ddp`.")  # fmt: skip
        config = setup.models.get(path)
        if not isinstance(config, Exception | None) and (method := quantisation(config)) is not None:
            yield Mistake(path, f"`Offloaded` around a quantised model ({method})", "plain weights", "Packed weights "
                          "cannot be moved to and fro: leave `Offloaded` out.")  # fmt: skip

    def load(self) -> PreTrainedModel:
        return self.source.load()

    def skeleton(self) -> PreTrainedModel:
        return self.source.skeleton()

    def stored(self) -> StoredWeights | None:
        return self.source.stored()


class OffloadedLM(CausalLM):
    """A frozen model whose weights are on its device inside of `present` only.

    Args:
        model: as in `CausalLM`, on the CPU.
        vocab_size: as in `CausalLM`.

    Attributes:
        moves_of: how often weights have come to the device, by what came: `whole` or `head`.
    """

    stays_in_place = False

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        super().__init__(model, vocab_size)
        self.moves_of = {"whole": 0, "head": 0}
        self._device: torch.device | None = None  # None: the weights stay on the CPU
        self._resting: dict[int, Tensor] = {}
        self._users = {"whole": 0, "head": 0}

    def to(self, *args: Any, **kwargs: Any) -> OffloadedLM:
        """Remember the device on which the model is to run, and pin its weights in the memory of the host."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            super().to(dtype)
        if device is not None and device.type not in ("cpu", "meta") and self._device is None:
            self._each(self, lambda tensor: tensor.pin_memory())
        if device is not None:
            self._device = None if device.type in ("cpu", "meta") else device
        return self

    @property
    def device(self) -> torch.device:
        """Return the device on which the model computes, wherever its weights rest."""
        return self._device or super().device

    @contextmanager
    def present(self, *, head_only: bool = False) -> Iterator[None]:
        """Have the weights, or those of the head, on the device in the block. Blocks may lie inside of each other."""
        what = "head" if head_only and not self._users["whole"] else "whole"
        if self._device is None:
            yield
            return
        if not self._users[what]:
            self.moves_of[what] += 1
            self._each(self._part(what), self._come)
        self._users[what] += 1
        try:
            yield
        finally:
            self._users[what] -= 1
            if not any(self._users.values()):
                self._each(self, self._leave)
                self._resting.clear()

    def _part(self, what: str) -> nn.Module:
        return self.model.get_output_embeddings() if what == "head" else self

    def _come(self, tensor: Tensor) -> Tensor:
        assert self._device is not None, "`present` has looked"
        if tensor.device == self._device:
            return tensor
        rests, came = tensor.detach(), tensor.to(self._device, non_blocking=True)
        # A parameter stays the object that it is, and a buffer is replaced.
        self._resting[id(tensor if isinstance(tensor, nn.Parameter) else came)] = rests
        return came

    def _leave(self, tensor: Tensor) -> Tensor:
        return self._resting.get(id(tensor), tensor)

    @staticmethod
    def _each(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():  # weights made in a validation would serve no training
            nn.Module._apply(module, change)  # type: ignore[no-untyped-call]
