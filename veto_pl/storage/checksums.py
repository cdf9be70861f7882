"""Checksums that lie beside files, in the form that `sha256sum --check` reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from veto_pl.exceptions import DataError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ((?!/)(?!.*\.\.)[^\\\0]+)")


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write `SHA256SUMS` into a folder.

    Args:
        folder: where to write.
        sums: name of a file in the folder -> its hash.
    """
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str] | None:
    """Return the hashes by the names of the files, or None where the folder has none.

    Raises:
        DataError: the file of the hashes is damaged.
    """
    path = folder / SUMS
    if not path.is_file():
        return None
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        raise DataError(f"`{path}` is damaged: expected lines of a hash and the name of a file.")
    return {match[2]: match[1] for match in found if match is not None}


def damaged(folder: Path, sums: Mapping[str, str], names: Collection[str]) -> list[str]:
    """Return those of the files that are not there or have another hash."""
    return [name for name in names if not (folder / name).is_file() or sha256_of(folder / name) != sums.get(name)]
