"""The position of a run in training, and the random numbers that are a function of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB
"""SplitMix64's odd constant, 0x9E3779B97F4A7C15, as a signed number."""


@dataclass(frozen=True)
class Step:
    """A position in training. Schedules read `index` and `total`; random draws are a pure function of what they need.

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
        """Return a generator for one purpose; `shared` gives all ranks and micro-batches of a step the same one."""
        place = "0/all" if shared else f"{self.micro}/{self.rank}"
        return torch.Generator(device).manual_seed(self._seed(purpose, place))

    def seeds(self, purpose: str, numbers: Tensor) -> list[int]:
        """Return a seed below 2^63 for each row of `numbers` ([B] int64), a function of the row's number alone."""
        return [self._seed(purpose, f"row {number}") for number in numbers.tolist()]

    def uniform(self, purpose: str, numbers: Tensor, *shape: int) -> Tensor:
        """Draw [B, *shape] float64 numbers in [0, 1) on the CPU, each row of `numbers` from a generator of its own."""
        drawn = torch.empty(len(numbers), *shape, dtype=torch.float64)
        generator = torch.Generator()
        for row, seed in zip(drawn, self.seeds(purpose, numbers), strict=True):
            row.uniform_(generator=generator.manual_seed(seed))
        return drawn

    def uniform_by_key(self, purpose: str, keys: Tensor) -> Tensor:
        """Return [...] float64 numbers in [0, 1), one for each of `keys` ([...] int64), a function of the key alone.

        They are formed on the keys' device, and nobody waits for the keys. Nearby keys have unrelated numbers
        (SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
        """
        mixed = keys * _GAMMA + self._seed(purpose, "all")
        # Products wrap modulo 2^64, as they should; `>>` copies the sign of an int64, so the copies are masked off.
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * factor
        mixed = mixed ^ (mixed >> 31 & (1 << 33) - 1)
        return (mixed >> 11 & (1 << 53) - 1).double() / (1 << 53)

    def aside(self, name: str) -> Step:
        """Return the same position with other random numbers: a second rollout would repeat those of the first."""
        return replace(self, seed=self._seed(f"aside {name}", "all"))

    def _seed(self, purpose: str, place: str) -> int:
        digest = hashlib.blake2b(f"{self.seed}/{purpose}/{self.index}/{place}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1
