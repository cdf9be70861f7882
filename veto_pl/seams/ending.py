"""Why a completion ends."""

from __future__ import annotations

from enum import IntEnum


class Ending(IntEnum):
    """Why a completion ends."""

    UNKNOWN = -1
    """Nobody has said; its last token may tell."""
    LIMIT = 0
    """There was no more room, so its end is missing."""
    EOS = 1
    """With EOS, its last token."""
    STOP = 2
    """With the token that completes a stop string."""
