"""What the fields of rows have values for, and how fields of several parts become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

WHOLE, PER_ROW, PER_TOKEN = ({"axes": axes} for axes in range(3))
"""Metadata of a field of `Sequences`: not sliced with the rows, one value for each of them, or for each token.

With `absent`, a function of the rows, it has a meaning where rows do not have it, and is kept beside rows that do. With
`numbers`, equal values mean something within a part alone, and those of several parts are told apart."""


def layout(kind: type[Any]) -> dict[str, Mapping[str, Any]]:
    """Return the metadata of the fields that are sliced with the rows, by name; a class of rows may have more.

    Raises:
        TypeError: a field does not say what it has a value for.
    """
    declared: dict[str, Field[Any]] = {one.name: one for one in fields(kind)}
    if silent := [name for name, one in declared.items() if "axes" not in one.metadata]:
        raise TypeError(
            f"`{kind.__name__}.{silent[0]}` must say what it has a value for: declare it by "
            "`field(metadata=PER_ROW)`, or with `PER_TOKEN` or `WHOLE` (`veto_pl.seams.row_fields`)."
        )
    return {name: one.metadata for name, one in declared.items() if one.metadata["axes"]}


def stacked(name: str, how: Mapping[str, Any], parts: Sequence[Any]) -> Tensor | None:
    """Return a field of the rows of all parts, right-padded; None where one part cannot have it.

    Args:
        name: of the field.
        how: its metadata.
        parts: rows, of any widths.
    """
    width = max(part.input_ids.shape[1] for part in parts)
    values = [getattr(part, name) for part in parts]
    if "absent" in how and any(value is not None for value in values):
        values = [how["absent"](p) if v is None else v for p, v in zip(parts, values, strict=True)]
    if not all(isinstance(value, Tensor) for value in values):
        return None
    values = _told_apart(values) if how.get("numbers") else values
    grid = how["axes"] == PER_TOKEN["axes"]
    return torch.cat([pad(v, (0, width - v.shape[1])) if grid else v for v in values])


def _told_apart(numbers: Sequence[Tensor]) -> list[Tensor]:
    """Return numbers, [B] of each part, such that no two parts share one."""
    apart, start = [], 0
    for part in numbers:
        names, places = torch.unique(part, return_inverse=True)
        apart.append(places + start)
        start += len(names)
    return apart
