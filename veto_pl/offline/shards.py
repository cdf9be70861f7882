"""The files of a store: the rows of a shard lie one behind another, token by token, in safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from veto_pl.exceptions import DataError
from veto_pl.offline.cost import TruncationCost
from veto_pl.offline.manifest import Shard, replace_file, sha256_of
from veto_pl.scores import TopKScores


@dataclass(frozen=True)
class ScoredRow:
    """What the teacher says about one completion of n tokens.

    Args:
        key: names the row, 16 bytes.
        ids: [n, k] integers, the likeliest ids first.
        logp: [n, k + 1] float32, the tail last.
    """

    key: bytes
    ids: Tensor
    logp: Tensor


def write_shard(folder: Path, file: str, rows: Sequence[ScoredRow], cost: TruncationCost) -> Shard:
    """Writes one file in one step and returns its entry for the manifest."""
    lengths = torch.tensor([0, *(len(row.ids) for row in rows)])
    keys = torch.frombuffer(bytearray(b"".join(row.key for row in rows)), dtype=torch.uint8)
    content = save(
        {
            "keys": keys.view(len(rows), -1),
            "offsets": lengths.cumsum(0),
            "ids": torch.cat([row.ids for row in rows]).to("cpu", torch.int32).contiguous(),
            "logp": torch.cat([row.logp for row in rows]).to("cpu", torch.float32).contiguous(),
        }
    )
    replace_file(folder / file, content)
    return Shard(file, hashlib.sha256(content).hexdigest(), len(rows), cost)


def verify(folder: Path, shard: Shard) -> None:
    """Compares a shard's bytes with the manifest's hash; raises `DataError` where they differ."""
    path = folder / shard.file
    found = sha256_of(path) if path.is_file() else "no such file"
    if found != shard.sha256:
        raise DataError(
            f"The shard `{path}` is damaged: its sha256 must be {shard.sha256}, got {found}. Run `veto-pl "
            "cache-teacher` with the same arguments again: it rebuilds this shard and keeps the others."
        )


class ShardReader:
    """Reads rows of one verified shard; the file stays mapped, and only what is asked for is copied.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(str(path), framework="pt")
        offsets: Tensor = self._file.get_tensor("offsets")  # type: ignore[no-untyped-call]
        self._offsets: list[int] = offsets.tolist()

    def keys(self) -> list[bytes]:
        """The rows' keys, in the order of the file."""
        return [bytes(key) for key in self._file.get_tensor("keys").tolist()]

    def row(self, index: int, temperature: float) -> TopKScores:
        """The scores of one row, [n, k] and [n, k + 1]."""
        tokens = slice(self._offsets[index], self._offsets[index + 1])
        ids, logp = (self._file.get_slice(name)[tokens] for name in ("ids", "logp"))
        return TopKScores(ids.long(), logp, temperature)
