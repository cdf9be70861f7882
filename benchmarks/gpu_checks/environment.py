"""What the device can do: the ceilings of all ratios."""

from collections.abc import Iterator
from importlib.metadata import version

import torch
from gpu_checks.place import Place
from gpu_checks.verdict import Verdict


def measure(place: Place) -> Iterator[Verdict]:
    """Copy a gigabyte, and multiply two large matrices; the other checks are measured by both."""
    size = 2**20 if place.smoke else 2**30
    source, target = (torch.empty(size, dtype=torch.uint8, device=place.device) for _ in range(2))
    place.bandwidth = 2 * size / place.seconds(lambda: target.copy_(source))
    width = 256 if place.smoke else 8192
    left, right = place.randn(width, width), place.randn(width, width)
    place.rate = 2 * width**3 / place.seconds(lambda: left @ right)
    yield Verdict.ran(
        "environment",
        device="CPU" if place.smoke else torch.cuda.get_device_name(),
        copy_tb_s=place.bandwidth / 1e12,
        bf16_tflop_s=place.rate / 1e12,
        **{name: version(name) for name in ("torch", "transformers", "lightning")},
    )
