"""Named splits of a set of rows, disjoint by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.types import Example

T = TypeVar("T")


def pick(splits: Mapping[str, T], split: str) -> T:
    """The value of `split`; raises `ConfigurationError` with the known names.

    Example:
        >>> pick({"train": 3, "test": 1}, "test")
        1
    """
    if split not in splits:
        raise ConfigurationError(f"`split` must be one of {', '.join(splits)}, got {split!r}.")
    return splits[split]


def partition(
    rows: Iterable[Example], *, origin: str, validation_size: int, test_size: int = 0, train_size: int | None = None
) -> dict[str, list[Example]]:
    """Cuts rows into `validation`, `test` and `train`, in that order, after dropping repeated prompts.

    Validation comes first, so that asking the same source for more rows leaves it as it was.

    Args:
        rows: any number of rows; of rows with one prompt the first is kept.
        origin: what the rows are called in an error.
        validation_size: rows of `validation`.
        test_size: rows of `test`.
        train_size: rows of `train`, or None for all that are left.

    Raises:
        DataError: where the distinct rows are too few.
    """
    distinct: dict[str, Example] = {}
    for row in rows:
        distinct.setdefault(row.prompt, row)
    unique = list(distinct.values())
    held = validation_size + test_size
    needed = held + (1 if train_size is None else train_size)
    if len(unique) < needed:
        raise DataError(
            f"{origin} has {len(unique)} distinct rows, expected at least {needed} ({validation_size} for validation, "
            f"{test_size} for test, {needed - held} for train). Ask for fewer, or provide more rows."
        )
    train = unique[held:] if train_size is None else unique[held:needed]
    return {"train": train, "validation": unique[:validation_size], "test": unique[validation_size:held]}


def check_sizes(owner: str, *, at_least: int = 0, **sizes: int | None) -> None:
    """Raises `ConfigurationError` for a size below `at_least`; None stands for no limit."""
    for name, size in sizes.items():
        if size is not None and size < at_least:
            raise ConfigurationError(f"`{owner}.{name}` must be {at_least} or more, got {size}.")


def check_stop(owner: str, stop: tuple[str, ...]) -> None:
    """Raises `ConfigurationError` for an empty stop string, which would end every completion before it begins.

    Example:
        >>> check_stop("JsonLines", ("Question:",))
    """
    if not all(stop):
        raise ConfigurationError(f"`{owner}.stop` must hold no empty string, got {stop}.")
