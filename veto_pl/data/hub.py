"""Rows from the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from veto_pl.data.fingerprints import settings_key
from veto_pl.exceptions import DataError

_FEW = 5000
"""Rows that are read anew each time, because that is quicker than a cache is worth."""


def hub_rows(
    name: str, split: str, *, owner: str, config: str | None = None, field: str | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a `hub_dataset` as a list of dicts."""
    return [dict(row) for row in hub_dataset(name, split, owner=owner, config=config, field=field)]


def hub_key(dataset: Any, *settings: Any) -> str | None:
    """Return a name for what is made of a data set of the hub, as `source_key` does for files; None if it is small."""
    known = getattr(dataset, "_fingerprint", None)  # `datasets` has no public name for it
    return None if known is None or len(dataset) < _FEW else settings_key(known, *settings)


def hub_dataset(
    name: str, split: str, *, owner: str, config: str | None = None, field: str | None = None, streaming: bool = False
) -> Any:
    """Load a split of a data set on the hub, or in its cache; its rows are read as they are asked for.

    Args:
        name: the data set, such as `openai/gsm8k`.
        split: the split's name.
        owner: the task that asks, for errors; it has a field `hub`.
        config: the data set's configuration, where it has several.
        field: the task's field for a file, for errors; None for `{split}_path`.
        streaming: give its rows as they arrive, and keep none.

    Raises:
        DataError: it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, config, split=split, **({"streaming": True} if streaming else {}))
    except (OSError, ValueError) as error:
        raise DataError(
            f"`{owner}.hub` expected a data set that can be loaded, got {name!r}: {error}. Check the name and "
            f"the connection, or set `{owner}.{field or f'{split}_path'}` to a file of rows."
        ) from error
