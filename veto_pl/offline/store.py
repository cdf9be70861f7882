"""The reading side: verified once, then row by row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models.vocabulary import real_ids
from veto_pl.offline.fingerprint import row_key, tokenizer_fingerprint
from veto_pl.offline.manifest import NAME, Manifest
from veto_pl.offline.shards import ShardReader, verify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ScoreStore:
    """A folder of teacher scores. Opening it hashes every shard; afterwards rows are read from mapped files.

    Args:
        folder: what `veto-pl cache-teacher` wrote.

    Raises:
        ConfigurationError: there is no store in the folder, or it is not complete.
        DataError: a shard is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = complete_manifest(folder)
        self._readers: list[ShardReader] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._checked: PreTrainedTokenizerBase | None = None
        self._ids = 2**31
        for number, shard in enumerate(self.manifest.shards):
            verify(self.folder, shard)
            self._readers.append(ShardReader(self.folder / shard.file, self.k))
            self._places |= {key: (number, row) for row, key in enumerate(self._readers[-1].keys())}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def k(self) -> int:
        """Ids kept per token."""
        return self.manifest.identity.k

    @property
    def temperature(self) -> float:
        """What the teacher's logits were divided by."""
        return self.manifest.identity.temperature

    @property
    def sampled_logp(self) -> bool:
        """Whether the log-probability of each token is kept, likely or not."""
        return self.manifest.identity.sampled_logp

    def find(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], images: Sequence[str] = ()
    ) -> TopKScores | None:
        """Return the scores of the n completion tokens, ids [n, k], or None if the row was never scored.

        Args:
            prompt_ids: of the row.
            completion_ids: of the row.
            images: a hash of each of its images.
        """
        place = self._places.get(row_key(prompt_ids, completion_ids, images))
        scores = None if place is None else self._readers[place[0]].row(place[1], self.temperature)
        if scores is not None and len(scores.ids) and int(scores.ids.max()) >= self._ids:
            raise DataError(
                f"The store `{self.folder}` has scores of the id {int(scores.ids.max())}, but the tokenizer has "
                f"{self._ids} ids. The store is damaged: delete it and run `veto-pl cache-teacher` again."
            )
        return scores

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ConfigurationError` if the ids of a tokenizer do not mean what those of the store do."""
        if tokenizer is self._checked:
            return
        ours, theirs = self.manifest.identity.tokenizer, tokenizer_fingerprint(tokenizer)
        if ours != theirs:
            raise ConfigurationError(
                f"The store `{self.folder}` was written with another tokenizer ({ours[:16]}) than this run's "
                f"({theirs[:16]}), so its ids mean something else. Set `model.tokenizer` to the one of the teacher, or "
                "run `veto-pl cache-teacher` with this run's."
            )
        self._checked, self._ids = tokenizer, real_ids(tokenizer)


def complete_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of a complete store; raise `ConfigurationError` if the store is not complete."""
    manifest = Manifest.read(folder)
    if not manifest.complete:
        rows = sum(shard.rows for shard in manifest.shards)
        raise ConfigurationError(
            f"The store `{folder}` is not complete: `veto-pl cache-teacher` was interrupted after {rows} rows. Run it "
            "again with the same arguments; it goes on where it stopped."
        )
    return manifest


def open_store(folder: str | Path) -> ScoreStore:
    """Return the store, opened and verified once per process as long as its manifest stays the same."""
    path = Path(folder)
    changed = (path / NAME).stat().st_mtime_ns if (path / NAME).is_file() else None
    return _opened(path, changed)


@lru_cache(maxsize=8)
def _opened(folder: Path, changed: int | None) -> ScoreStore:
    return ScoreStore(folder)
