"""The accumulation window: the micro-batches between two optimizer steps give one gradient and one line of the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.sharding import sum_shards
from veto_pl.seams import LossOutput, Rollouts, Stat
from veto_pl.training.normalisation import GradientLedger, merge_terms

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LOGGED_WHEN_EMPTY = ("loss", "completion_length")
"""Logged as 0 where no row of a step counts; other means over nothing are left out."""


class Window:
    """Collects loss terms and what is logged, and divides both by global weights in the end.

    Nothing in here outlives an optimizer step, so none of it is in a checkpoint.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._ledger = GradientLedger()
        self._terms: dict[str, Stat] = {}
        self._logged: dict[str, Stat] = {}

    def begin_micro_batch(self) -> None:
        """Begin a micro-batch, and set whether DDP averages the gradients of its backward pass.

        Where terms are kept apart, their gradients are summed over the ranks once, at the end of the window.
        """
        self._synchronise(not self._ledger.separate)

    def add(self, output: LossOutput, rollouts: Rollouts) -> Tensor:
        """Add the terms and the logged values of a micro-batch.

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
        written = [rows.completion_mask for rows in rollouts.values()]
        lengths = [Stat(mask.sum().float(), mask.any(1).sum().float()) for mask in written]
        counted = torch.stack([rows.predictions.sum() for rows in rollouts.values()]).sum().float()
        logged = {**output.terms, **output.metrics, "completion_length": sum(lengths[1:], lengths[0])}
        logged["tokens"] = Stat(counted, counted)
        for name, stat in logged.items():
            seen = self._logged.get(name)
            self._logged[name] = stat.detach() if seen is None else seen + stat.detach()
        return torch.stack([stat.total for stat in terms.values()]).sum()

    def backward(self, of_sum: Callable[[], None]) -> None:
        """Run one backward pass, or one per term where the window divides them by different weights."""
        terms, self._terms = self._terms, {}  # no graph outlives its backward pass
        if len(terms) == 1:
            of_sum()
        else:
            self._ledger.backward(terms, self.trained)

    def close(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Divide the gradients by the global weights, before they are clipped, and begin a new window.

        Collective: it sums over the ranks, so every rank calls it.

        Returns:
            The means of what was logged, the norm of the gradient, and the number of completion tokens, all over all
            ranks.
        """
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches
        # Lightning divides the loss by the micro-batches, DDP and FSDP2 average over the ranks: `scale` undoes both.
        self._ledger.normalise(self.trained, self.all_reduce, scale, self._over_ranks)
        self._ledger.reset()
        self._synchronise(True)
        sums = self.all_reduce(torch.stack([torch.stack([s.total, s.weight]) for s in self._logged.values()]).double())
        observed = (sums[:, 1] > 0).tolist()
        means = {
            name: Stat(*pair).mean()
            for name, pair, seen in zip(self._logged, sums, observed, strict=True)
            if name != "tokens" and (seen or name.rpartition("/")[2] in LOGGED_WHEN_EMPTY)
        }
        tokens = sums[list(self._logged).index("tokens"), 0]
        self._logged = {}
        return means, sum_shards(nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])), tokens

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
