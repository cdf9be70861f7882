"""Any data set in JSON Lines files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veto_pl.data.jsonl import OnBadRow, check_format, read_examples
from veto_pl.data.rewards import NoReward
from veto_pl.data.splits import check_sizes, check_stop, pick
from veto_pl.seams import Reward, Task
from veto_pl.types import Example


@dataclass(frozen=True, kw_only=True)
class JsonLines(Task):
    """One JSON object per line, `.jsonl` or `.jsonl.gz`.

    Args:
        train: the file of the training rows.
        validation: the file of the validation rows, or None for none.
        test: the file of the test rows, or None for none.
        prompt: the field that holds the prompt.
        completion: the field that holds the reference completion, or None where the rows have none.
        verifier: scores completions.
        limit: read so many rows of each file, or None for all.
        on_bad_row: `error` stops at the first bad row, `skip` leaves bad rows out and warns with their number.
        stop: strings that end a completion, beside those of `Sampling.stop`.

    Raises:
        ConfigurationError: a number is negative, a stop string empty, or a file of another format.
        DataError: for a file that cannot be read, or a bad row, named as `file:line: field`.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    prompt: str = "prompt"
    completion: str | None = "completion"
    verifier: Reward = NoReward()
    limit: int | None = None
    on_bad_row: OnBadRow = "error"
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes("JsonLines", limit=self.limit)
        check_stop("JsonLines", self.stop)
        for split in ("train", "validation", "test"):
            check_format(f"JsonLines.{split}", getattr(self, split))

    def load(self, split: str) -> Sequence[Example]:
        """The rows of the split's file; none where it has no file."""
        path = pick({"train": self.train, "validation": self.validation, "test": self.test}, split)
        if path is None:
            return []
        return read_examples(
            path, prompt=self.prompt, completion=self.completion, on_bad_row=self.on_bad_row, limit=self.limit
        )

    def reward(self, example: Example, completion: str) -> float:
        """The verifier's score."""
        return self.verifier(example, completion)
