"""Any data set in JSON Lines files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.example_rows import ExampleStream, Say, StoredExamples, stored
from veto_pl.data.fingerprints import brief_digest, source_key
from veto_pl.data.jsonl import JsonLinesFile, OnBadRow, check_format
from veto_pl.data.rewards import NoReward
from veto_pl.data.splits import check_paths, check_sizes, check_stop, pick
from veto_pl.seams import Example, Mistake, Reward, Setup, Task


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
        streaming: read the training rows as they are needed, not before the run begins, and keep none of them.
        stop: strings that end a completion, beside those of `Sampling.stop`.

    Raises:
        ConfigurationError: a number is negative, a path or stop string empty, or a file of another format.
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
    streaming: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("JsonLines", limit=self.limit)
        check_stop("JsonLines", self.stop)
        check_paths("JsonLines", train=self.train, validation=self.validation, test=self.test)
        for split in ("train", "validation", "test"):
            check_format(f"JsonLines.{split}", getattr(self, split))

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield that somebody reads references, of which the rows have none."""
        if self.completion is None and setup.references_for:
            yield Mistake(f"{path}.init_args.completion", f"`null` with a rollout `{setup.references_for}`",
                          "the field of the reference completions",
                          "Name it, or let the student write (`FromStudent`).")  # fmt: skip

    def load(self, split: str) -> Sequence[Example] | ExampleStream:
        """Return the rows of the split's file; none where it has no file."""
        path = pick({"train": self.train, "validation": self.validation, "test": self.test}, split)
        if path is None:
            return []
        if self.streaming and split == "train":
            return ExampleStream(lambda: self._file(path), origin=path, fingerprint=brief_digest(path))
        return self._stored(path)

    def _stored(self, path: str) -> StoredExamples:
        key = partial(source_key, path, "JsonLines", self.prompt, self.completion, self.on_bad_row, self.limit)
        return stored(lambda say: self._file(path, say), origin=path, key=key)

    def _file(self, path: str, say: Say = rank_zero_warn) -> JsonLinesFile:
        return JsonLinesFile(path, self.prompt, self.completion, self.on_bad_row, self.limit, say)

    def reward(self, example: Example, completion: str) -> float:
        """Return the verifier's score."""
        return self.verifier(example, completion)

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the verifier's score of each pair."""
        return self.verifier.batch(examples, completions)
