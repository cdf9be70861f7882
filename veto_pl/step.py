"""Where training stands, and the random numbers that belong there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Where training stands. Schedules read `index` and `total`; random draws are a pure function of what they need.

    What is drawn for a row depends on the seed, the optimizer step and the number of the row, so it is the same on any
    number of ranks, in any split into micro-batches, and after a resume.

    Args:
        index: optimizer steps done.
        total: optimizer steps of the whole run.
        seed: the run's seed.
        rank: this process among the data-parallel ones.
        micro: the micro-batch inside the accumulation window.
    """

    index: int
    total: int
    seed: int = 0
    rank: int = 0
    micro: int = 0

    def generator(self, purpose: str, device: torch.device | str = "cpu", *, shared: bool = False) -> torch.Generator:
        """A generator for one purpose; `shared` gives all ranks and micro-batches of a step the same one."""
        place = "0/all" if shared else f"{self.micro}/{self.rank}"
        return torch.Generator(device).manual_seed(self._seed(purpose, place))

    def seeds(self, purpose: str, numbers: Tensor) -> list[int]:
        """A seed below 2^63 for each row of `numbers` ([B] int64), a function of the row's number alone."""
        return [self._seed(purpose, f"row {number}") for number in numbers.tolist()]

    def uniform(self, purpose: str, numbers: Tensor, *shape: int) -> Tensor:
        """[B, *shape] float64 numbers in [0, 1) on the CPU, for each row of `numbers` from a generator of its own."""
        drawn = torch.empty(len(numbers), *shape, dtype=torch.float64)
        generator = torch.Generator()
        for row, seed in zip(drawn, self.seeds(purpose, numbers), strict=True):
            row.uniform_(generator=generator.manual_seed(seed))
        return drawn

    def aside(self, name: str) -> Step:
        """The same place with other random numbers: for another rollout, which would repeat those of the first."""
        return replace(self, seed=self._seed(f"aside {name}", "all"))

    def _seed(self, purpose: str, place: str) -> int:
        digest = hashlib.blake2b(f"{self.seed}/{purpose}/{self.index}/{place}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1
