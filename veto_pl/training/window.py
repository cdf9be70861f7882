"""The accumulation window: the micro-batches between two optimizer steps give one gradient and one line of the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.sharding import sum_shards
from veto_pl.seams import LossOutput, Stat
from veto_pl.training.normalisation import GradientLedger, merge_terms

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

COUNTED = "tokens"
"""The number among those of a micro-batch that says how much of it is trained on; it is summed, not divided."""
LOGGED_WHEN_EMPTY = ("loss", "completion_length")
"""Logged as 0 where no row of a step counts; other means over nothing are left out."""


@dataclass(frozen=True)
class ClosedWindow:
    """What a window has come to, as numbers of the host.

    Args:
        means: of what was logged, over all ranks.
        norm: 2-norm of the normalised gradient, over all ranks.
        tokens: what was trained on, such as completion tokens, over all ranks.
        own_tokens: the same of this rank.
    """

    means: dict[str, float]
    norm: float
    tokens: float
    own_tokens: float


class Window:
    """Collects loss terms and what is logged, and divides both by global weights in the end.

    Nothing in here outlives an optimizer step, so none of it is in a checkpoint.

    Args:
        trainer: of the run.

    Attributes:
        norm: 2-norm of the normalised gradient of the last window, on the device.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._ledger = GradientLedger()
        self._terms: dict[str, Stat] = {}
        self._logged: dict[tuple[str, ...], Tensor] = {}
        self.norm = torch.zeros(())

    def begin_micro_batch(self) -> None:
        """Begin a micro-batch, and set whether DDP averages the gradients of its backward pass.

        Where terms are kept apart, their gradients are summed over the ranks once, at the end of the window.
        """
        self._synchronise(not self._ledger.separate)

    def add(self, output: LossOutput) -> Tensor:
        """Add the terms and the logged values of a micro-batch.

        Args:
            output: its `metrics` have `tokens`, how much is trained on.

        Returns:
            The undivided loss.

        Raises:
            ConfigurationError: several denominators, accumulation and a loss scale do not go together.
        """
        terms = dict(output.terms)
        if len(terms) > 1 and self.trainer.accumulate_grad_batches == 1:
            terms = {"loss": merge_terms(terms, self.all_reduce, self.trainer.world_size)}
        elif len(terms) > 1 and self.trainer.precision == "16-mixed":
            raise ConfigurationError(
                f"The objective has loss terms with their own denominators: {', '.join(terms)}. With 16-mixed "
                "precision they cannot be accumulated: set `trainer.accumulate_grad_batches: 1` and a larger "
                "`data.batch_size`."
            )
        self._terms = terms
        self._ledger.record(terms)
        self._log({**output.terms, **output.metrics})
        return torch.stack([stat.total for stat in terms.values()]).sum()

    def _log(self, stats: Mapping[str, Stat]) -> None:
        """Add what a micro-batch logs; all of it is one tensor [K, 2] on the device."""
        parts = [part.detach() for stat in stats.values() for part in (stat.total, stat.weight)]
        names, values = tuple(stats), torch.stack(parts).view(-1, 2)
        seen = self._logged.get(names)
        self._logged[names] = values if seen is None else seen + values

    def backward(self, of_sum: Callable[[], None]) -> None:
        """Run one backward pass, or one per term where the window divides them by different weights."""
        terms, self._terms = self._terms, {}  # no graph outlives its backward pass
        if len(terms) == 1:
            of_sum()
        else:
            self._ledger.backward(terms, self.trained)

    def close(self) -> ClosedWindow:
        """Divide the gradients by the global weights, before they are clipped, and begin a new window.

        Collective: it sums over the ranks, so every rank calls it. The host waits for the device once, in the end.
        """
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches
        # Lightning divides the loss by the micro-batches, DDP and FSDP2 average over the ranks: `scale` undoes both.
        self._ledger.normalise(self.trained, self.all_reduce, scale, self._over_ranks)
        self._ledger.reset()
        self._synchronise(True)
        own, self._logged = _by_name(self._logged), {}
        sums = self.all_reduce(torch.stack(list(own.values())).double())
        self.norm = sum_shards(nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None]))
        others = [self.norm.to(sums), own[COUNTED][0].to(sums)]
        *flat, norm, own_tokens = torch.cat([sums.flatten(), torch.stack(others)]).tolist()
        pairs = dict(zip(own, zip(flat[::2], flat[1::2], strict=True), strict=True))
        tokens, _ = pairs.pop(COUNTED)
        means = {
            name: total / (weight or 1.0)
            for name, (total, weight) in pairs.items()
            if weight > 0 or name.rpartition("/")[2] in LOGGED_WHEN_EMPTY
        }
        return ClosedWindow(means, norm, tokens, own_tokens)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters as the optimizer holds them; during a step the module itself may hold gathered copies."""
        return [p for optimizer in self.trainer.optimizers for group in optimizer.param_groups for p in group["params"]]

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks. Collective: call it on every rank."""
        summed: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return summed

    def _synchronise(self, each_backward: bool) -> None:
        """Set whether DDP averages the gradients of the next backward pass over the ranks."""
        if isinstance(model := self.trainer.strategy.model, DistributedDataParallel):
            model.require_backward_grad_sync = each_backward

    def _over_ranks(self, gradient: Tensor) -> Tensor:
        """Sum over the ranks a gradient that DDP left alone, and that FSDP2 averages in every backward pass."""
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            return self.all_reduce(gradient)
        return gradient * self.trainer.world_size


def _by_name(groups: Mapping[tuple[str, ...], Tensor]) -> dict[str, Tensor]:
    """Return the sum [2] of each name; micro-batches that log the same names are one group [K, 2]."""
    sums: dict[str, Tensor] = {}
    for names, values in groups.items():
        for name, pair in zip(names, values, strict=True):
            sums[name] = sums[name] + pair if name in sums else pair
    return sums
