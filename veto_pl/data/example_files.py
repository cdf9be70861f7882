"""Files of a few rows, for the examples that tasks give of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")


def split_files(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    r"""Write rows as JSON lines, every third of them for one split, and return the paths by split.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = split_files(Path(folder), [{"prompt": "one"}, {"prompt": "two"}])
        ...     {split: Path(path).read_text() for split, path in paths.items()}
        {'train': '{"prompt": "one"}\n', 'validation': '{"prompt": "two"}\n', 'test': ''}
    """
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    for place, path in enumerate(paths.values()):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows[place :: len(paths)]), encoding="utf-8")
    return {split: str(path) for split, path in paths.items()}
