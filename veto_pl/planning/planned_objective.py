"""The objective of a plan, which has no examples to read."""

from __future__ import annotations

from dataclasses import replace

from veto_pl.core.nested import changed, inside
from veto_pl.functional.chunk_size import fewest_rows
from veto_pl.parts.contexts import read_alike
from veto_pl.seams import Objective, Panel


def without_examples(objective: Objective, chunk_rows: int | None) -> Objective:
    """Return the objective and its terms with other chunks, and teachers that read what the student reads.

    Other contexts and panels read the examples of the batch, and a plan has none. Nor does it compile anything.
    """

    def chunked(part: Objective) -> Objective:
        wanted = {"compile": False} | ({} if chunk_rows is None else {"chunk_rows": chunk_rows})
        return replace(part, **{name: value for name, value in wanted.items() if hasattr(part, name)})  # type: ignore

    alike = changed(read_alike(objective), Panel, lambda panel: panel.planned())  # type: ignore[type-abstract]
    return changed(alike, Objective, chunked)  # type: ignore[type-abstract]


def most_rows(objective: Objective) -> int:
    """Return the most rows that a term of the objective needs to hold at a time."""
    parts = inside(objective, Objective)  # type: ignore[type-abstract]
    return max((fewest_rows(getattr(part, "chunk_rows", 0)) for part in parts), default=0)
