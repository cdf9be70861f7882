"""Summaries of everyday conversations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from veto_pl.data.hub import hub_rows
from veto_pl.data.jsonl import read_examples, to_example
from veto_pl.data.rewards import RougeL
from veto_pl.data.splits import check_sizes, check_stop, pick
from veto_pl.seams import Task
from veto_pl.types import Example


@dataclass(frozen=True, kw_only=True)
class DialogSum(Task):
    """DialogSum (Chen et al. 2021, arXiv:2105.06762): rows `dialogue` and `summary`, scored by ROUGE-L.

    A test row has `summary1`, `summary2` and `summary3` instead, and rows of the same dialogue that follow one another,
    as on the hub, become one row: the first summary is the completion, the others are its alternatives. The reward is
    the ROUGE-L F measure against the best of them, so 1, which counts as correct, is rare: watch the mean reward.

    With any path set, only files are read and a split without a file is empty; with none, the rows come from the hub.

    Args:
        train_path: JSON Lines file of the training rows.
        validation_path: JSON Lines file of the validation rows.
        test_path: JSON Lines file of the test rows.
        hub: the data set's name on the Hugging Face hub.
        max_dialogue_chars: leave out rows with a longer dialogue; None for no limit.
        stop: strings that end a completion, beside those of `Sampling.stop`.

    Raises:
        ConfigurationError: a number is negative, or a stop string empty.
        DataError: for a file or a row that cannot be used, or an unreachable hub.
    """

    train_path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    hub: str = "knkarthick/dialogsum"
    max_dialogue_chars: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes("DialogSum", max_dialogue_chars=self.max_dialogue_chars)
        check_stop("DialogSum", self.stop)

    def load(self, split: str) -> Sequence[Example]:
        """The rows of the split."""
        paths = {"train": self.train_path, "validation": self.validation_path, "test": self.test_path}
        path = pick(paths, split)
        if path is not None:
            rows = [dict(example.row) for example in read_examples(path, prompt="dialogue", completion=None)]
        else:
            rows = [] if any(paths.values()) else hub_rows(self.hub, split, owner="DialogSum")
        origin = path or f"{self.hub}/{split}"
        examples = merged(summarised(row, f"{origin}: row {number}") for number, row in enumerate(rows, 1))
        most = self.max_dialogue_chars
        return [row for row in examples if most is None or len(row.prompt) <= most]

    def reward(self, example: Example, completion: str) -> float:
        """The ROUGE-L F measure against the best summary."""
        return RougeL()(example, completion)


def summarised(row: dict[str, Any], where: str) -> Example:
    """A dialogue with its summaries; `where` opens the message of a `DataError`."""
    several: list[str] = [name for name in ("summary1", "summary2", "summary3") if name in row]
    first, *others = (
        to_example(row, prompt="dialogue", completion=name, where=where) for name in several or ["summary"]
    )
    return replace(first, alternatives=tuple(other.completion for other in others if other.completion is not None))


def merged(rows: Iterable[Example]) -> list[Example]:
    """Neighbours of the same prompt as one row that has the references of all.

    Example:
        >>> [row.references for row in merged([Example("p", "a"), Example("p", "b"), Example("q", "c")])]
        [('a', 'b'), ('c',)]
    """
    joined: list[Example] = []
    for row in rows:
        if joined and joined[-1].prompt == row.prompt:
            joined[-1] = replace(joined[-1], alternatives=(*joined[-1].alternatives, *row.references))
        else:
            joined.append(row)
    return joined
