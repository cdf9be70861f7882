"""Rows from the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from veto_pl.exceptions import DataError


def hub_rows(
    name: str, split: str, *, owner: str, config: str | None = None, field: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a split of a data set on the hub, or in its cache.

    Args:
        name: the data set, such as `openai/gsm8k`.
        split: the split's name.
        owner: the task that asks, for errors; it has a field `hub`.
        config: the data set's configuration, where it has several.
        field: the task's field for a file, for errors; None for `{split}_path`.

    Raises:
        DataError: it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return [dict(row) for row in load_dataset(name, config, split=split)]
    except (OSError, ValueError) as error:
        raise DataError(
            f"`{owner}.hub` expected a data set that can be loaded, got {name!r}: {error}. Check the name and "
            f"the connection, or set `{owner}.{field or f'{split}_path'}` to a JSON Lines file."
        ) from error
