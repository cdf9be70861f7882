"""How far what a student samples is from the images of the data."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from veto_pl.functional.energy import energy_distance


class EnergyDistance(Metric):
    """The energy distance between samples and targets of a validation, over all ranks.

    Pixels or latents are compared as they are, so it suits small images; it says nothing of single rows.
    """

    full_state_update = False
    higher_is_better = False
    samples: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("samples", "targets"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, samples: Tensor, targets: Tensor) -> None:
        """Add samples [N, ...] and targets [M, ...]."""
        self.samples.append(samples.detach().flatten(1).float())
        self.targets.append(targets.detach().flatten(1).float())

    def compute(self) -> Tensor:
        """Return the distance of all that was added."""
        return energy_distance(_joined(self.samples), _joined(self.targets))


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    """Return [N, D]; what was gathered from the ranks is one tensor already."""
    return parts if isinstance(parts, Tensor) else torch.cat(parts)
