"""How many rows of logits are held at a time."""

from collections.abc import Sequence
from typing import Literal

import torch

ChunkRows = int | Literal["auto"]
"""Rows of a chunk; `auto` is 256 on a CPU, and what fits easily on an accelerator."""
FEWEST, MOST = 256, 4096
"""A CPU has its best speed from 256 rows on; a GPU wants a thousand or more, and gains nothing beyond 4096."""
SHARE = 16
"""One part in so many of the free memory is for the logits that are held. What a kernel makes of them, uncompiled and
at its worst, is four times that."""


def rows_that_fit(free_bytes: int, vocab_size: int, dtypes: Sequence[torch.dtype]) -> int:
    """Return the largest power of two, from 256 to 4096, whose logits take a sixteenth of the free memory at most.

    Args:
        free_bytes: that could be allocated.
        vocab_size: columns of the logits.
        dtypes: of the tensors of logits that are held for each row: the student's, the teacher's, and the gradient's
            where it does not take the place of the student's.

    Example:
        >>> rows_that_fit(60 * 10**9, 151936, [torch.float32, torch.float32, torch.bfloat16])
        2048
    """
    rows = free_bytes // SHARE // (vocab_size * sum(dtype.itemsize for dtype in dtypes))
    return min(max(1 << max(rows.bit_length() - 1, 0), FEWEST), MOST)


def chunk_size(chunk_rows: ChunkRows, device: torch.device, vocab_size: int, dtypes: Sequence[torch.dtype]) -> int:
    """Return the rows of a chunk: those asked for, or on `auto` those that the device has room for.

    Args:
        chunk_rows: a number, or `auto`.
        device: where the logits will be.
        vocab_size: columns of the logits.
        dtypes: as in `rows_that_fit`.

    Raises:
        ValueError: the number is below 1.

    Example:
        >>> chunk_size("auto", torch.device("cpu"), 151936, [torch.float32])
        256
    """
    if chunk_rows == "auto":
        free = free_bytes(device)
        return fewest_rows(chunk_rows) if free is None else rows_that_fit(free, vocab_size, dtypes)
    if chunk_rows < 1:
        raise ValueError(f"`chunk_rows` must be at least 1, got {chunk_rows}.")
    return chunk_rows


def fewest_rows(chunk_rows: ChunkRows) -> int:
    """Return the rows that a chunk has where nothing more is free.

    Example:
        >>> fewest_rows("auto"), fewest_rows(64)
        (256, 64)
    """
    return FEWEST if chunk_rows == "auto" else chunk_rows


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that could be allocated on an accelerator; None on a CPU, and where the device cannot say.

    What PyTorch has reserved and does not use counts as free.

    Example:
        >>> free_bytes(torch.device("cpu")) is None
        True
    """
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    if not all(hasattr(module, name) for name in ("mem_get_info", "memory_reserved", "memory_allocated")):
        return None
    free: int = module.mem_get_info(device)[0]
    unused: int = module.memory_reserved(device) - module.memory_allocated(device)
    return free + unused
