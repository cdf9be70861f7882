"""Grade-school mathematics with a number at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from veto_pl.data.example_files import split_files
from veto_pl.data.example_rows import stored
from veto_pl.data.fingerprints import source_key
from veto_pl.data.hub import hub_dataset, hub_key
from veto_pl.data.jsonl import to_example
from veto_pl.data.mathematics import MathAnswer
from veto_pl.data.row_file import RowFile, texts_of
from veto_pl.data.splits import check_paths, check_sizes, check_stop, partitioned, pick
from veto_pl.seams import Example, Task

Choice = Callable[[Iterable[Example]], Iterable[Example]]


@dataclass(frozen=True, kw_only=True)
class GSM8K(Task):
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168): rows `question`, `answer`, scored by `MathAnswer`.

    With any path set, only files are read and a split without a file is empty; with none, the rows come from the hub,
    which has `train` and `test`. Without `validation_path`, validation is held out from the training rows.

    Args:
        train_path: file of the training rows.
        validation_path: file of the validation rows.
        test_path: file of the test rows.
        hub: the data set's name on the Hugging Face hub.
        validation_size: the first distinct training rows, held out for validation where `validation_path` is not set.
        max_question_chars: leave out rows with a longer question; None for no limit.
        stop: strings that end a completion, beside those of `Sampling.stop`.

    Raises:
        ConfigurationError: a number is negative, or a path or stop string empty.
        DataError: for a file or a row that cannot be used, or an unreachable hub.
    """

    train_path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    hub: str = "openai/gsm8k"
    validation_size: int = 256
    max_question_chars: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("GSM8K", validation_size=self.validation_size, max_question_chars=self.max_question_chars)
        check_stop("GSM8K", self.stop)
        check_paths("GSM8K", **{f"{split}_path": path for split, path in self._paths.items()})

    @classmethod
    def examples(cls, folder: Path) -> tuple[GSM8K, ...]:
        rows = [{"question": f"{n} and 2 more?", "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}"} for n in range(9)]
        paths = {f"{split}_path": path for split, path in split_files(folder, rows).items()}
        return cls(**paths), cls(train_path=paths["train_path"], validation_size=1)

    def load(self, split: str) -> Sequence[Example]:
        """Return the rows of the split."""
        path = pick(self._paths, split)
        if split == "test" or self.validation_path is not None:
            return self._stored(split, path, split, self._short)
        return self._stored("train", self.train_path, split, lambda rows: self._part(split, self._short(rows)))

    def reward(self, example: Example, completion: str) -> float:
        """Return 1.0 where the completion ends in the answer's number, in any form, else 0.0."""
        return MathAnswer()(example, completion)

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the reward of each pair."""
        return MathAnswer().batch(examples, completions)

    @property
    def _paths(self) -> dict[str, str | None]:
        return {"train": self.train_path, "validation": self.validation_path, "test": self.test_path}

    def _stored(self, source: str, path: str | None, split: str, choose: Choice) -> Sequence[Example]:
        """Return the rows that `choose` takes of the file, or of the split `source` of the hub, for `split`."""
        settings = ("GSM8K", split, self.validation_size, self.validation_path, self.max_question_chars)
        if path is not None:
            file, key = path, partial(source_key, path, *settings)
            return stored(
                lambda say: choose(RowFile(file, texts_of("question", "answer"), say=say)), origin=path, key=key
            )
        if any(self._paths.values()):
            return list(choose(()))
        origin = f"{self.hub}/{source}"
        rows = hub_dataset(self.hub, source, owner="GSM8K", config="main")
        return stored(lambda _: choose(_checked(rows, origin)), origin=origin, key=partial(hub_key, rows, *settings))

    def _short(self, rows: Iterable[Example]) -> Iterator[Example]:
        most = self.max_question_chars
        return (row for row in rows if most is None or len(row.prompt) <= most)

    def _part(self, split: str, rows: Iterable[Example]) -> Iterator[Example]:
        parts = partitioned(rows, origin="The training split of GSM8K", validation_size=self.validation_size)
        return (row for part, row in parts if part == split)


def _checked(rows: Iterable[Any], origin: str) -> Iterator[Example]:
    for number, row in enumerate(rows, 1):
        yield to_example(dict(row), prompt="question", completion="answer", where=f"{origin}:{number}")
