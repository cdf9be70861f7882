"""What is known about the rows of a forward pass, so that transformers need not ask the device for it.

transformers looks into masks and positions for padding and packed sequences, and waits for the device each time. It has
no argument that tells, so two functions of its module of masks are replaced: they answer inside `known_rows`, and are
as before outside of it. Where a version of transformers lacks one, it asks the device as it would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class _Known(NamedTuple):
    """Whether rows hold several sequences, and whether any has padding."""

    packed: bool
    padded: bool


_known: ContextVar[_Known | None] = ContextVar("known rows", default=None)


@contextmanager
def known_rows(*, packed: bool, padded: bool) -> Iterator[None]:
    """Tell transformers about the rows that models read in this block.

    Args:
        packed: a row holds several sequences, each at positions from 0.
        padded: the mask, where one is given, hides something.
    """
    _replace_questions()
    token = _known.set(_Known(packed, padded))
    try:
        yield
    finally:
        _known.reset(token)


@cache
def _replace_questions() -> None:
    """Replace transformers' questions by answers, once in a process."""
    from transformers import masking_utils

    for name, answering in (("find_packed_sequence_indices", _numbered), ("fast_all", _unpadded)):
        if hasattr(masking_utils, name):
            setattr(masking_utils, name, answering(getattr(masking_utils, name)))


def _numbered(ask: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
    """Return what numbers the sequences of each row by their positions [R, W], or gives None for rows of one each."""

    def find(position_ids: Tensor) -> Tensor | None:
        known = _known.get()
        if known is None:
            return ask(position_ids)
        if not known.packed:
            return None
        before = torch.cat([position_ids[:, :1] - 1, position_ids[:, :-1]], 1)
        return (position_ids - before != 1).cumsum(-1)

    return find


def _unpadded(ask: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor | bool]:
    """Return what says whether a mask hides nothing."""

    def unpadded(mask: Tensor) -> Tensor | bool:
        known = _known.get()
        return ask(mask) if known is None else not known.padded

    return unpadded
