"""Summaries of everyday conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from veto_pl.data.example_files import split_files
from veto_pl.data.example_rows import Say, stored
from veto_pl.data.fingerprints import source_key
from veto_pl.data.hub import hub_dataset, hub_key
from veto_pl.data.jsonl import to_example
from veto_pl.data.rewards import RougeL
from veto_pl.data.row_file import RowFile, texts_of
from veto_pl.data.splits import check_paths, check_sizes, check_stop, pick
from veto_pl.seams import Example, Task


@dataclass(frozen=True, kw_only=True)
class DialogSum(Task):
    """DialogSum (Chen et al. 2021, arXiv:2105.06762): rows `dialogue` and `summary`, scored by ROUGE-L.

    A test row has `summary1`, `summary2` and `summary3` instead, and rows of the same dialogue that follow one another,
    as on the hub, become one row: the first summary is the completion, the others are its alternatives. The reward is
    the ROUGE-L F measure against the best of them, so 1, which counts as correct, is rare: watch the mean reward.

    With any path set, only files are read and a split without a file is empty; with none, the rows come from the hub.

    Args:
        train_path: file of the training rows.
        validation_path: file of the validation rows.
        test_path: file of the test rows.
        hub: the data set's name on the Hugging Face hub.
        max_dialogue_chars: leave out rows with a longer dialogue; None for no limit.
        stop: strings that end a completion, beside those of `Sampling.stop`.

    Raises:
        ConfigurationError: a number is negative, or a path or stop string empty.
        DataError: for a file or a row that cannot be used, or an unreachable hub.
    """

    train_path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    hub: str = "knkarthick/dialogsum"
    max_dialogue_chars: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("DialogSum", max_dialogue_chars=self.max_dialogue_chars)
        check_stop("DialogSum", self.stop)
        check_paths("DialogSum", **{f"{split}_path": path for split, path in self._paths.items()})

    @classmethod
    def examples(cls, folder: Path) -> tuple[DialogSum, ...]:
        names = ("summary1", "summary2", "summary3")
        rows = [{"dialogue": f"A: {n}?", "summary": f"A asks for {n}."} for n in range(6)]
        rows[2::3] = [{"dialogue": f"A: {n}?"} | {name: f"{name} of {n}" for name in names} for n in (7, 8)]
        return (cls(**{f"{split}_path": path for split, path in split_files(folder, rows).items()}),)

    def load(self, split: str) -> Sequence[Example]:
        """Return the rows of the split."""
        path, origin = pick(self._paths, split), f"{self.hub}/{split}"
        settings = ("DialogSum", self.max_dialogue_chars)
        if path is not None:
            file, key = path, partial(source_key, path, *settings)
            return stored(lambda say: self._joined(_file(file, say), file), origin=file, key=key)
        if any(self._paths.values()):
            return []
        rows = hub_dataset(self.hub, split, owner="DialogSum")
        key = partial(hub_key, rows, *settings)
        return stored(lambda _: self._joined(map(dict, rows), origin), origin=origin, key=key)

    def reward(self, example: Example, completion: str) -> float:
        """Return the ROUGE-L F measure against the best summary."""
        return RougeL()(example, completion)

    @property
    def _paths(self) -> dict[str, str | None]:
        return {"train": self.train_path, "validation": self.validation_path, "test": self.test_path}

    def _joined(self, rows: Iterable[dict[str, Any]], origin: str) -> Iterator[Example]:
        examples = merged(summarised(row, f"{origin}: row {number}") for number, row in enumerate(rows, 1))
        most = self.max_dialogue_chars
        return (row for row in examples if most is None or len(row.prompt) <= most)


def _file(path: str, say: Say) -> Iterator[dict[str, Any]]:
    return (dict(example.row) for example in RowFile(path, texts_of("dialogue", None), say=say))


def summarised(row: dict[str, Any], where: str) -> Example:
    """Return a dialogue with its summaries; `where` opens the message of a `DataError`."""
    several: list[str] = [name for name in ("summary1", "summary2", "summary3") if name in row]
    first, *others = (
        to_example(row, prompt="dialogue", completion=name, where=where) for name in several or ["summary"]
    )
    return replace(first, alternatives=tuple(other.completion for other in others if other.completion is not None))


def merged(rows: Iterable[Example]) -> Iterator[Example]:
    """Yield neighbouring rows of the same prompt as one row that has the references of all.

    Example:
        >>> [row.references for row in merged([Example("p", "a"), Example("p", "b"), Example("q", "c")])]
        [('a', 'b'), ('c',)]
    """
    for _, (first, *others) in groupby(rows, key=attrgetter("prompt")):
        more = chain.from_iterable(row.references for row in others)
        yield replace(first, alternatives=(*first.alternatives, *more))
