"""Named splits of a set of rows, disjoint by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, TypeVar

from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example

T = TypeVar("T")


def pick(splits: Mapping[str, T], split: str) -> T:
    """Return the value of `split`; raise `ConfigurationError`, with the known names, where there is none.

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
    """Cut rows into `validation`, `test` and `train`, in that order, after dropping repeated prompts.

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
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    found = partitioned(
        rows, origin=origin, validation_size=validation_size, test_size=test_size, train_size=train_size
    )
    for split, row in found:
        parts[split].append(row)
    return parts


def partitioned(
    rows: Iterable[Example], *, origin: str, validation_size: int, test_size: int = 0, train_size: int | None = None
) -> Iterator[tuple[str, Example]]:
    """Yield the rows of a `partition` one by one, each behind the name of its split; the error comes last."""
    held = validation_size + test_size
    needed = held + (1 if train_size is None else train_size)
    seen: set[bytes] = set()  # hashes, because prompts may have any length
    for row in rows:
        name = blake2b(row.prompt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if name in seen:
            continue
        place = len(seen)
        seen.add(name)
        if train_size is None or place < needed:
            yield "validation" if place < validation_size else "test" if place < held else "train", row
    if len(seen) < needed:
        raise DataError(
            f"{origin} has {len(seen)} distinct rows, expected at least {needed} ({validation_size} for validation, "
            f"{test_size} for test, {needed - held} for train). Ask for fewer, or provide more rows."
        )


def check_sizes(owner: str, *, at_least: int = 0, **sizes: int | None) -> None:
    """Raise `ConfigurationError` for a size below `at_least`; None stands for no limit."""
    for name, size in sizes.items():
        if size is not None and size < at_least:
            raise ConfigurationError(f"`{owner}.{name}` must be {at_least} or more, got {size}.")


def check_paths(owner: str, **paths: str | None) -> None:
    """Raise `ConfigurationError` for a path without a name; None stands for no file."""
    for name, path in paths.items():
        if path is not None and not path.strip():
            raise ConfigurationError(f"`{owner}.{name}` expected the path of a file of rows, got {path!r}. Name it.")


def check_stop(owner: str, stop: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` for an empty stop string, which would end every completion before it begins.

    Example:
        >>> check_stop("JsonLines", ("Question:",))
    """
    if not all(stop):
        raise ConfigurationError(f"`{owner}.stop` must hold no empty string, got {stop}.")


def describe_change(split: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe how the rows of a split have changed; return an empty string where they have not."""
    if before == now:
        return ""
    if before["count"] != now["count"]:
        return f"`{split}` had {_count(before)} and has {_count(now)}"
    return f"`{split}` has {_count(now)} as before, but with other content"


def _count(rows: Mapping[str, Any]) -> str:
    return "a stream" if rows["count"] is None else f"{rows['count']} rows"
