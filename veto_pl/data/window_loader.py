"""A training loader whose batches know which others follow in their accumulation window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from veto_pl.seams import PromptBatch


class WindowLoader(DataLoader[PromptBatch]):
    """Reads an accumulation window ahead, so that all of it can be rolled out at once (`PromptBatch.following`).

    Args:
        args: those of `DataLoader`, as all others.
        window: maps the number of batches that have been read to those that the window has left.
    """

    def __init__(self, *args: Any, window: Callable[[int], int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.window = window

    def __iter__(self) -> Iterator[PromptBatch]:  # type: ignore[override]
        batches, read = super().__iter__(), 0
        while part := tuple(islice(batches, self.window(read))):
            read += len(part)
            yield from (replace(batch, following=part[i:]) for i, batch in enumerate(part, 1))
