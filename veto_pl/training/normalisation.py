"""Global normalisation: every loss term is divided once, by its own weight over all micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from veto_pl.models.sharding import local_part
from veto_pl.seams import Stat

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks."""


class GradientLedger:
    r"""Keeps the weights of a window of micro-batches, and the gradients of terms whose weights differ.

    The gradient that reaches the optimizer is

    .. math:: \sum_j \frac{1}{W_j} \sum_m \nabla T_{jm}

    for terms j, micro-batches m, totals T and the weights :math:`W_j` summed over the whole window and all ranks, so it
    is the same however a batch is split. With one term the parameters' own gradients hold the sum and are scaled at the
    end. With several, each term has a backward pass and a gradient buffer of its own.
    """

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}
        self._gradients: dict[str, dict[nn.Parameter, Tensor]] = {}

    @property
    def separate(self) -> bool:
        """Whether terms have been kept apart in this window."""
        return bool(self._gradients)

    def reset(self) -> None:
        """Forget the weights and gradients, as a new window begins."""
        self._weights.clear()
        self._gradients.clear()

    def record(self, terms: Mapping[str, Stat]) -> None:
        """Add the weights of a micro-batch."""
        for name, stat in terms.items():
            weight = stat.weight.detach().double()  # exact beyond 2^24 tokens
            self._weights[name] = self._weights[name] + weight if name in self._weights else weight

    def backward(self, terms: Mapping[str, Stat], parameters: Iterable[nn.Parameter]) -> None:
        """Run one backward pass per term into the term's own buffer, which has summed its micro-batches so far."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for position, (name, stat) in enumerate(terms.items(), 1):
            buffer = self._gradients.get(name, {})
            for parameter in trained:
                parameter.grad = buffer.get(parameter)
            # The terms share the graph of the student's forward pass, so only the last one may free it.
            stat.total.backward(retain_graph=position < len(terms))  # type: ignore[no-untyped-call]
            self._gradients[name] = {p: p.grad for p in trained if p.grad is not None}
        for parameter in trained:
            parameter.grad = None

    def normalise(
        self,
        parameters: Iterable[nn.Parameter],
        all_reduce: AllReduce,
        scale: float,
        over_ranks: AllReduce | None = None,
    ) -> None:
        """Write the normalised gradients into the parameters.

        Args:
            parameters: the trained parameters.
            all_reduce: sums over the ranks.
            scale: undoes what the training loop divided the single term by; ranks times accumulated micro-batches.
            over_ranks: makes of a gradient that was kept apart the sum over the ranks; there is one rank by default.
        """
        weights = self.global_weights(all_reduce)
        inverse = {name: torch.where(weight > 0, 1 / weight, 0.0) for name, weight in weights.items()}
        if not self._gradients:
            (factor,) = inverse.values()
            gradients = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, factor * scale)
            return
        # `over_ranks` is a collective for each parameter: all ranks have the same parameters and terms, in one order.
        for parameter in parameters:
            parts = [g[parameter] * inverse[name] for name, g in self._gradients.items() if parameter in g]
            whole = sum(parts[1:], parts[0]) if parts else None
            parameter.grad = whole if whole is None or over_ranks is None else over_ranks(whole)

    def global_weights(self, all_reduce: AllReduce) -> dict[str, Tensor]:
        """Sum the weight of every term over the window and all ranks, in one communication.

        Collective: call it on every rank.
        """
        summed = all_reduce(torch.stack(list(self._weights.values())))
        return {name: weight.float() for name, weight in zip(self._weights, summed, strict=True)}


def merge_terms(terms: Mapping[str, Stat], all_reduce: AllReduce, ranks: int) -> Stat:
    """Return one term that already holds the normalised sum of all terms, for a window of one micro-batch.

    Collective: call it on every rank.

    Args:
        terms: the terms of this rank.
        all_reduce: sums over the ranks.
        ranks: how many there are; the weights of the result add up to 1 over them.
    """
    weights = all_reduce(torch.stack([stat.weight.detach().double() for stat in terms.values()]))
    inverse = torch.where(weights > 0, 1 / weights, 0.0).float()
    total = torch.stack([stat.total * factor for stat, factor in zip(terms.values(), inverse, strict=True)]).sum()
    return Stat(total, torch.full_like(total, 1 / ranks).detach())
