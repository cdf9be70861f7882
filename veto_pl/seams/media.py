"""Images of prompts, as a model's processor has made them: what its forward takes beside the ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


class Continuing(Protocol):
    """What is asked of rows that continue prompts; `Sequences` says what it means."""

    @property
    def prompts(self) -> Any:
        """Return the `PromptBatch`, or None."""
        ...

    @property
    def prompt_rows(self) -> Tensor:
        """Return [B] int64."""
        ...


@dataclass(frozen=True)
class Media:
    """The features of the images of B rows.

    Args:
        of_rows: for each row, tensors by the names that the model's forward takes them by, such as `pixel_values`;
            their first axis counts images, or the patches of all images. Empty for a row without images.
    """

    of_rows: tuple[Mapping[str, Tensor], ...]

    def __len__(self) -> int:
        return len(self.of_rows)

    @property
    def has_images(self) -> bool:
        """Return whether any of these rows has an image."""
        return any(self.of_rows)

    def features(self) -> dict[str, Tensor]:
        """Return the tensors by name, those of all rows one behind the other along their first axis.

        Where other axes differ, as with images of several sizes, zeros fill them up behind, as processors do. None are
        returned where no row has an image.
        """
        names = dict.fromkeys(name for row in self.of_rows for name in row)
        return {name: _joined([row[name] for row in self.of_rows if name in row]) for name in names}

    def rows(self, places: Sequence[int]) -> Media:
        """Return those of the rows at `places`, in that order, repeats allowed."""
        return Media(tuple(self.of_rows[place] for place in places))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Media:
        """Return the same on `device`."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking or tensor.is_pinned()))

    def pin_memory(self) -> Media:
        """Return the same in pinned memory."""
        return self._changed(Tensor.pin_memory)

    @staticmethod
    def concatenate(parts: Sequence[tuple[Media | None, int]]) -> Media | None:
        """Stack the rows of several batches, each given with its number of rows; None where no batch has images."""
        if all(media is None for media, _ in parts):
            return None
        rows = [({},) * count if media is None else media.of_rows for media, count in parts]
        return Media(tuple(row for part in rows for row in part))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Media:
        return Media(tuple({name: change(tensor) for name, tensor in row.items()} for row in self.of_rows))


def media_of(sequences: Continuing) -> Media | None:
    """Return the images of the prompts that these rows continue; None where no prompt of the batch has any."""
    media: Media | None = getattr(sequences.prompts, "media", None)
    return None if media is None else media.rows(sequences.prompt_rows.tolist())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors along their first axis, each filled up by zeros to the longest of every other axis."""
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    room = [[most - size for size, most in zip(part.shape[1:], longest, strict=True)] for part in parts]
    filled = [
        pad(part, [side for most in reversed(more) for side in (0, most)]) if any(more) else part
        for part, more in zip(parts, room, strict=True)
    ]
    return torch.cat(filled)
