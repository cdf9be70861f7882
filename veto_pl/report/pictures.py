"""Pictures of samples, as a page shows them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from veto_pl.exceptions import DataError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SMALL = 320
"""Pixels of a width up to which a picture is shown larger than it is, with its pixels as squares."""


@dataclass(frozen=True)
class Picture:
    """A picture in a page that needs nothing else.

    Args:
        title: what is written under it.
        content: of a PNG file.
    """

    title: str
    content: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int.from_bytes(self.content[16:20], "big"), int.from_bytes(self.content[20:24], "big")

    @property
    def is_small(self) -> bool:
        """Whether its pixels are shown as squares."""
        return self.size[0] <= SMALL

    @property
    def address(self) -> str:
        """The picture as a `data:` address."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode()}"


def read_picture(path: Path, title: str) -> Picture:
    """Return the picture of a file.

    Raises:
        DataError: it cannot be read, or is no PNG file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the picture cannot be read: {error.strerror}.") from error
    if not content.startswith(_SIGNATURE) or len(content) < 24:
        raise DataError(f"{path}: expected a PNG file, got {content[:8]!r}. Remove it, or draw it again.")
    return Picture(title, content)
