"""Images as one picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from veto_pl.core.extras import require_extra

WIDEST = 1024
"""Pixels of a picture's width; a larger one is made smaller."""


def picture(images: Tensor, columns: int = 8, bounds: tuple[float, float] | None = None) -> Any:
    """Return images as one picture of Pillow, row by row, with transparent gaps.

    Args:
        images: [N, C, H, W]; of C channels, three are colours, and else the first is shown.
        columns: images beside each other.
        bounds: the numbers that are black and white, with what is beyond cut off; by default the least and the largest.
    """
    require_extra("PIL", extra="diffusion", needed_by="A picture of samples")
    from PIL import Image

    shown = images.detach().float().cpu()
    shown = shown[:, :3] if shown.shape[1] == 3 else shown[:, :1].expand(-1, 3, -1, -1)
    low, high = (float(shown.min()), float(shown.max())) if bounds is None else bounds
    shown = ((shown - low) / max(high - low, 1e-12)).nan_to_num(0.0).clamp(0, 1)
    shown = torch.cat([shown, torch.ones_like(shown[:, :1])], dim=1)  # opaque
    shown = torch.nn.functional.pad(shown, (0, 1, 0, 1))
    shown = torch.cat([shown, shown.new_zeros(-len(shown) % columns, *shown.shape[1:])])
    grid = shown.view(-1, columns, *shown.shape[1:]).permute(0, 3, 1, 4, 2).reshape(-1, columns * shown.shape[-1], 4)
    found = Image.fromarray((grid * 255).round().to(torch.uint8).numpy())
    found.thumbnail((WIDEST, WIDEST * 4))  # which only makes smaller
    return found


def bounds_of(images: Tensor) -> tuple[float, float]:
    """Return the least and the largest number of images, for pictures that can be compared with theirs."""
    return float(images.min()), float(images.max())
