"""What the loss head holds of one model: hidden states, head, and the logits of one chunk of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from veto_pl.functional.heads import Head, LinearHead


class Side:
    """One model's hidden states and head, and the logits of one chunk of them."""

    def __init__(self, hidden: Tensor, head: Head, *, trained: bool) -> None:
        dtype = _compute_dtype(hidden)
        if dtype == torch.float16 and trained and isinstance(head, LinearHead):
            # Most of a gradient over a vocabulary would underflow before any loss scale could reach it.
            dtype = torch.float32
        self.hidden = hidden.detach().to(dtype)
        self.head = head.cast(self.hidden.dtype)
        self._buffered: slice | None = None  # the chunk whose logits `_logits` holds
        self._logits: Tensor | None = None
        self._gradient: Tensor | None = None

    def logits(self, chunk: slice, differentiable: bool) -> Tensor:
        """Return the [n, R] logits of a chunk.

        A chunk whose logits are still in the buffer, because it is the only one, is not formed again.
        """
        rows = self.hidden[chunk]
        if self._buffered == chunk and self._logits is not None:
            return self._logits[: len(rows)]
        out = None if self._logits is None or len(self._logits) < len(rows) else self._logits[: len(rows)]
        with torch.set_grad_enabled(differentiable):
            logits = self.head.forward(rows, out)
        if logits is not out:
            self._logits = logits
        self._buffered = chunk
        return logits

    def room_for_gradient(self, logits: Tensor, *, apart: bool = False) -> Tensor:
        """Return where the [n, R] gradient of a chunk's logits is written: over them, if it has their dtype.

        Otherwise, or where it has to be `apart`, it has a buffer, which all chunks share.
        """
        dtype = self.head.gradient_dtype(logits.dtype)
        if dtype == logits.dtype and not apart:
            self._buffered = None
            return logits
        if self._gradient is None:
            self._gradient = torch.empty_like(logits, dtype=dtype)
        return self._gradient[: len(logits)]


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype that products are formed in: autocast's where it is on, else the tensor's own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
