"""Encoded rows of a split: their tokens in an Arrow table, beside the examples."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from veto_pl.data.collate import Collator, Encoded
from veto_pl.data.example_rows import batches, rows_at, told_beside
from veto_pl.data.fingerprints import digest
from veto_pl.data.row_store import Notes, cached_table
from veto_pl.data.sampler import RankSampler
from veto_pl.data.turns import check_agreement
from veto_pl.exceptions import DataError
from veto_pl.seams import Example

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    {
        "prompt_ids": _IDS,
        "completion_ids": _IDS,
        "cut": pa.int32(),
        "remarks": pa.string(),  # joined by spaces
        "references": pa.large_string(),  # as JSON, where the encoding has changed those of the example
        "turns": pa.list_(pa.int32()),
        "unknown": pa.int32(),
        "pictures": pa.list_(pa.string()),
    }
)
_Batch = tuple[pa.RecordBatch, str]


@dataclass(frozen=True, eq=False)
class EncodedRows(Sequence[Encoded]):
    """A lazy list of encoded rows; pickled, it is little more than the names of its files.

    Args:
        tokens: a data set of what the encoding makes of each example.
        examples: the examples of all rows of `tokens`.
        content: names the contents of both.
        places: [N] int64, the rows of `tokens` that are left, in their order; None for all.
        longest: the last so many tokens are the prompt; None for all.
    """

    tokens: Any
    examples: Sequence[Example]
    content: str
    places: np.ndarray[Any, np.dtype[np.int64]] | None = None
    longest: int | None = None

    def __len__(self) -> int:
        return len(self.tokens) if self.places is None else len(self.places)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the rows at some places, read together, as a loader asks for them."""
        numbers = list(indices) if self.places is None else self.places[list(indices)].tolist()
        if not numbers:
            return []
        columns = self.tokens[numbers]
        first = None if self.longest is None else -self.longest
        parts = zip(rows_at(self.examples, numbers), numbers, *columns.values(), strict=True)
        return [
            Encoded(
                _with(example, references), prompt[first:], completion, number, cut, tuple(said.split()), turns,
                unknown, tuple(pictures),
            )
            for example, number, prompt, completion, cut, said, references, turns, unknown, pictures in parts
        ]  # fmt: skip

    def __iter__(self) -> Iterator[Encoded]:
        return chain.from_iterable(map(self.__getitems__, batches(len(self))))

    @property
    def dataset(self) -> Dataset[Encoded]:
        """The data set from which a loader reads the places of an order."""
        return cast("Dataset[Encoded]", self)

    @property
    def summary(self) -> dict[str, Any]:
        """What a checkpoint says about these rows: their number, and a hash of what they hold."""
        places = b"" if self.places is None else self.places.tobytes()
        return {"count": len(self), "fingerprint": digest(self.content, places, str(self.longest))}

    @property
    def prompt_lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each prompt, [N] int64, read from the table without its tokens."""
        lengths = self._left(pc.list_value_length(self.tokens.data.column("prompt_ids")))
        return lengths if self.longest is None else np.minimum(lengths, self.longest)

    @property
    def cut_tokens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens that were cut from the end of each reference, [N] int64."""
        return self._left(self.tokens.data.column("cut"))

    @property
    def total_tokens(self) -> int:
        """Tokens of all prompts and references."""
        lengths = self._left(pc.list_value_length(self.tokens.data.column("completion_ids")))
        return int(self.prompt_lengths.sum() + lengths.sum())

    @property
    def unknown_tokens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each row that stand for text that the tokenizer does not know, [N] int64."""
        return self._left(self.tokens.data.column("unknown"))

    @property
    def with_images(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows have images, [N] bool."""
        return self._left(pc.list_value_length(self.tokens.data.column("pictures"))) > 0

    def remarked(self, remark: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which rows have a remark, [N] bool."""
        return self._left(pc.match_substring(self.tokens.data.column("remarks"), remark)).astype(bool)

    def only(self, wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> EncodedRows:
        """Return the rows for which `wanted` ([N] bool) holds."""
        return replace(self, places=self._places[wanted])

    def cut(self, longest: int) -> EncodedRows:
        """Return the same rows with prompts of their last `longest` tokens."""
        return replace(self, longest=longest)

    def order(self, rank: int, world_size: int, *, seed: int, shuffle: bool) -> RankSampler:
        """Return the order in which a rank reads the training rows; raise `DataError` where a rank would have none."""
        if len(self) < world_size:
            raise DataError(
                f"{len(self)} training rows, expected at least one for each of {world_size} ranks. Use fewer."
            )
        mixed: Callable[..., RankSampler] | None = getattr(self.examples, "order", None)
        if mixed is None:
            return RankSampler(len(self), rank, world_size, seed, shuffle, even=True)
        return mixed(self._places, rank, world_size, seed=seed, shuffle=shuffle)

    def in_turn(self) -> Sequence[int]:
        """Return the order in which rows are evaluated: their own, or that of a mixture, whose sets take turns."""
        mixed: Callable[..., Sequence[int]] | None = getattr(self.examples, "in_turn", None)
        return range(len(self)) if mixed is None else mixed(self._places)

    def listed(self, split: str) -> EncodedRows:
        """Return the rows as a sequence, which they are."""
        return self

    def check_trainer(self, trainer: Trainer) -> None:
        """Accept every setting of a trainer, since the number of rows is known; `EncodedStream` refuses some."""

    @property
    def _places(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(len(self)) if self.places is None else self.places

    def _left(self, column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the numbers of a column at the rows that are left."""
        numbers: np.ndarray[Any, np.dtype[np.int64]] = column.to_numpy().astype(np.int64)
        return numbers if self.places is None else numbers[self.places]


@dataclass(frozen=True)
class Batches(Dataset[list[Encoded]]):
    """Batches that are read as they are asked for.

    Args:
        rows: the rows.
        places: those of each batch.
    """

    rows: EncodedRows
    places: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> list[Encoded]:
        return self.rows.__getitems__(self.places[index])


def encode_rows(
    examples: Sequence[Example], collator: Collator, *, name: str | None = None, processes: int = 0
) -> EncodedRows:
    """Template and tokenise examples, in batches, and keep the tokens in an Arrow table.

    Tokens of stored examples of a known key stay in the cache, if the collator has a name, and are read from there the
    next time.

    Args:
        examples: a list, or a lazy one.
        collator: encodes them.
        name: tells the collator from every other one that encodes differently, as `fingerprint` does.
        processes: how many encode at the same time; 0 for this one alone.
    """
    encoder = _Encoder(examples, replace(collator, task=None))
    known: str | None = getattr(examples, "key", None)
    key = digest("tokens", known, name) if known and name else None
    pictures: str | None = getattr(examples, "pictures", None)
    if key is not None and pictures is not None:
        key = digest(key, pictures, collator.images.name) if collator.images is not None else None
    table = cached_table(key, _SCHEMA, lambda notes: _batches(encoder, processes, notes))
    return EncodedRows(table.rows, examples, table.notes["content"])


@dataclass(frozen=True)
class _Encoder:
    """Encodes the examples at some places."""

    examples: Sequence[Example]
    collator: Collator

    def __call__(self, places: range) -> _Batch:
        examples = rows_at(self.examples, places)
        check_agreement(examples)
        rows = self.collator.encode(examples, places)
        columns = [
            [row.prompt_ids for row in rows],
            [row.completion_ids for row in rows],
            [row.cut for row in rows],
            [" ".join(row.remarks) for row in rows],
            [_changed(example, row.example) for example, row in zip(examples, rows, strict=True)],
            [row.turns for row in rows],
            [row.unknown for row in rows],
            [row.pictures for row in rows],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)
        # Of images the hash tells, wherever they lie, and the name of rows without any is as it was.
        blind = [replace(example, images=()) if example.images else example for example in examples]
        plain = [[e.prompt, e.completion, e.alternatives, dict(e.row), *told_beside(e)] for e in blind]
        seen = columns if any(row.pictures for row in rows) else columns[:-1]
        told = json.dumps([plain, seen], skipkeys=True, default=lambda value: type(value).__name__)
        return batch, hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _changed(before: Example, after: Example) -> str | None:
    """Return the references of an example that the encoding has changed, as JSON for `_with`; None where they are the
    same.
    """
    return None if after.references == before.references else json.dumps([after.completion, after.alternatives])


def _with(example: Example, references: str | None) -> Example:
    if references is None:
        return example
    completion, alternatives = json.loads(references)
    return replace(example, completion=completion, alternatives=tuple(alternatives))


def _batches(encoder: _Encoder, processes: int, notes: Notes) -> Iterator[pa.RecordBatch]:
    total = hashlib.blake2b(digest_size=16)
    for batch, content in _encoded(encoder, list(batches(len(encoder.examples))), processes):
        total.update(content.encode())
        yield batch
    notes["content"] = total.hexdigest()


def _encoded(encoder: _Encoder, parts: list[range], processes: int) -> Iterator[_Batch]:
    """Yield the encoded batches in order, whichever process encodes them."""
    if processes == 0 or len(parts) <= 1:
        yield from map(encoder, parts)
        return
    with ProcessPoolExecutor(min(processes, len(parts)), initializer=_start_worker, initargs=(encoder,)) as pool:
        yield from pool.map(_encode, parts)


_encoders: list[Callable[[range], _Batch]] = []
"""The encoder of a process of the pool: set once, so that it is not pickled with every task."""


def _start_worker(encoder: Callable[[range], _Batch]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else each of them would use every core
    _encoders[:] = [encoder]


def _encode(places: range) -> _Batch:
    return _encoders[0](places)
