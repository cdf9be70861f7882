"""What the mask of packed rows costs, and whether dropout keeps a square of the row."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from gpu_checks.place import Place
from gpu_checks.verdict import Verdict
from torch.nn.functional import scaled_dot_product_attention

MOST = 3.0
"""Times that packed rows with a mask may take of a causal row."""


def measure(place: Place) -> Iterator[Verdict]:
    rows, heads, width, size = (1, 2, 32, 8) if place.smoke else (8, 14, 2048, 64)
    query, key, value = (place.randn(rows, heads, width, size).requires_grad_() for _ in range(3))
    number = torch.arange(width, device=place.device) // (width // 4)
    apart = (number[:, None] == number) & torch.ones(width, width, device=place.device).tril().bool()
    mask = apart[None, None].expand(rows, 1, width, width)

    def attend(**settings: object) -> None:
        scaled_dot_product_attention(query, key, value, **settings).sum().backward()

    times = {
        "causal_ms": 1e3 * place.seconds(lambda: attend(is_causal=True)),
        "packed_ms": 1e3 * place.seconds(lambda: attend(attn_mask=mask)),
        "packed_with_dropout_ms": 1e3 * place.seconds(lambda: attend(attn_mask=mask, dropout_p=0.1)),
    }
    square = 2 * rows * heads * width**2
    kept = place.peak(lambda: attend(attn_mask=mask, dropout_p=0.1)) / square
    flash = find_spec("flash_attn") is not None
    ratio = times["packed_ms"] / times["causal_ms"]
    yield Verdict.judged("attention of packed rows", ratio, most=MOST, smoke=place.smoke, flash_attn=flash, **times)
    yield Verdict.judged("attention with dropout, squares of a row", kept, most=1.0, smoke=place.smoke)
