"""The files of a store: the rows of a shard lie one behind another, token by token, in safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import DataError
from veto_pl.offline.cost import TruncationCost
from veto_pl.offline.manifest import Shard
from veto_pl.storage.atomic import replacing
from veto_pl.storage.checksums import sha256_of

KEY_BYTES = 16
TYPES = {"keys": "U8", "offsets": "I64", "ids": "I32", "logp": "F32"}
SAMPLED = {"sampled_logp": "F32"}
"""What shards of earlier versions lack."""
REBUILD = "Delete the file and run `veto-pl cache-teacher` with the same arguments again."


@dataclass(frozen=True)
class ScoredRow:
    """What the teacher says about one completion of n tokens.

    Args:
        key: names the row, 16 bytes.
        ids: [n, k] integers, the likeliest ids first.
        logp: [n, k + 1] float32, the tail last.
        sampled_logp: [n] float32, of the tokens of the completion.
    """

    key: bytes
    ids: Tensor
    logp: Tensor
    sampled_logp: Tensor


def write_shard(folder: Path, file: str, rows: Sequence[ScoredRow], cost: TruncationCost) -> Shard:
    """Write one file atomically, and return its entry for the manifest."""
    lengths = torch.tensor([0, *(len(row.ids) for row in rows)])
    keys = torch.frombuffer(bytearray(b"".join(row.key for row in rows)), dtype=torch.uint8)
    content = save(
        {
            "keys": keys.view(len(rows), -1),
            "offsets": lengths.cumsum(0),
            "ids": torch.cat([row.ids for row in rows]).to("cpu", torch.int32).contiguous(),
            "logp": torch.cat([row.logp for row in rows]).to("cpu", torch.float32).contiguous(),
            "sampled_logp": torch.cat([row.sampled_logp for row in rows]).to("cpu", torch.float32).contiguous(),
        }
    )
    with replacing(folder / file) as temporary:
        temporary.write_bytes(content)
    return Shard(file, hashlib.sha256(content).hexdigest(), len(rows), cost)


def verify(folder: Path, shard: Shard) -> None:
    """Compare a shard's bytes with the manifest's hash; raise `DataError` if they differ."""
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
        k: ids kept per token.

    Raises:
        DataError: the file is no shard of so many ids.
    """

    def __init__(self, path: Path, k: int) -> None:
        self._path = path
        try:
            self._file: Any = safe_open(str(path), framework="pt")
            offsets: Tensor = self._file.get_tensor("offsets")  # type: ignore[no-untyped-call]
            self._offsets: list[int] = offsets.tolist()
            self._sampled = "sampled_logp" in set(self._file.keys())  # type: ignore[no-untyped-call]
            self._check(k)
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise DataError(f"The shard `{path}` cannot be read: {error!s:.200}. {REBUILD}") from error

    def keys(self) -> list[bytes]:
        """Return the rows' keys, in the order of the file."""
        return [bytes(key) for key in self._file.get_tensor("keys").tolist()]

    def row(self, index: int, temperature: float) -> TopKScores:
        """Return the scores of one row, ids [n, k] and log-probabilities [n, k + 1]; raise `DataError` if invalid."""
        tokens = slice(self._offsets[index], self._offsets[index + 1])
        ids, logp = (self._file.get_slice(name)[tokens] for name in ("ids", "logp"))
        sampled = self._file.get_slice("sampled_logp")[tokens] if self._sampled else None
        if len(ids) and not (_is_valid(ids, logp) and (sampled is None or _are_logps(sampled))):
            raise DataError(f"The shard `{self._path}` holds impossible scores of row {index}. {REBUILD}")
        return TopKScores(ids.long(), logp, temperature, sampled)

    def _check(self, k: int) -> None:
        """Raise `ValueError` if the shapes and types of the tensors do not fit together."""
        types = TYPES | (SAMPLED if self._sampled else {})
        parts = {name: self._file.get_slice(name) for name in types}
        found = {name: (part.get_dtype(), *part.get_shape()) for name, part in parts.items()}
        rows, tokens = len(self._offsets) - 1, self._offsets[-1] if self._offsets else -1
        shapes: dict[str, tuple[int, ...]] = {
            "keys": (rows, KEY_BYTES), "offsets": (rows + 1,), "ids": (tokens, k), "logp": (tokens, k + 1),
            "sampled_logp": (tokens,),
        }  # fmt: skip
        ascending = self._offsets[:1] == [0] and all(a <= b for a, b in pairwise(self._offsets))
        if found != {name: (kind, *shapes[name]) for name, kind in types.items()} or not ascending:
            raise ValueError(f"tensors that do not fit together: {found}")


def _are_logps(logp: Tensor) -> bool:
    """Return whether numbers can be log-probabilities; -inf can, NaN cannot."""
    return bool((logp < 1e-3).all())


def _is_valid(ids: Tensor, logp: Tensor) -> bool:
    """Return whether the ids of each token are distinct, and the probabilities of all outcomes sum to 1."""
    distinct = (ids.sort(-1).values.diff(dim=-1) > 0).all() and ids.min() >= 0
    return bool(distinct and logp.isfinite().all() and ((logp.exp().sum(-1) - 1).abs() < 1e-3).all())
