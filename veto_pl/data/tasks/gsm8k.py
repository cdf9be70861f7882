"""Grade-school mathematics with a number at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veto_pl.data.hub import hub_rows
from veto_pl.data.jsonl import read_examples, to_example
from veto_pl.data.mathematics import MathAnswer
from veto_pl.data.splits import check_sizes, check_stop, partition, pick
from veto_pl.seams import Task
from veto_pl.types import Example


@dataclass(frozen=True, kw_only=True)
class GSM8K(Task):
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168): rows `question`, `answer`, scored by `MathAnswer`.

    With any path set, only files are read and a split without a file is empty; with none, the rows come from the hub,
    which has `train` and `test`. Without `validation_path`, validation is held out from the training rows.

    Args:
        train_path: JSON Lines file of the training rows.
        validation_path: JSON Lines file of the validation rows.
        test_path: JSON Lines file of the test rows.
        hub: the data set's name on the Hugging Face hub.
        validation_size: the first distinct training rows, held out for validation where `validation_path` is not set.
        max_question_chars: leave out rows with a longer question; None for no limit.
        stop: strings that end a completion, beside those of `Sampling.stop`.

    Raises:
        ConfigurationError: a number is negative, or a stop string empty.
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
        check_sizes("GSM8K", validation_size=self.validation_size, max_question_chars=self.max_question_chars)
        check_stop("GSM8K", self.stop)

    def load(self, split: str) -> Sequence[Example]:
        """The rows of the split."""
        path = pick(self._paths, split)
        if split == "test" or self.validation_path is not None:
            return self._rows(split, path)
        rows = self._rows("train", self.train_path)
        return partition(rows, origin="The training split of GSM8K", validation_size=self.validation_size)[split]

    def reward(self, example: Example, completion: str) -> float:
        """1.0 where the completion ends in the answer's number, in any form, else 0.0."""
        return MathAnswer()(example, completion)

    @property
    def _paths(self) -> dict[str, str | None]:
        return {"train": self.train_path, "validation": self.validation_path, "test": self.test_path}

    def _rows(self, split: str, path: str | None) -> list[Example]:
        if path is not None:
            rows = read_examples(path, prompt="question", completion="answer")
        else:
            rows = [] if any(self._paths.values()) else self._from_hub(split)
        most = self.max_question_chars
        return [row for row in rows if most is None or len(row.prompt) <= most]

    def _from_hub(self, split: str) -> list[Example]:
        return [
            to_example(row, prompt="question", completion="answer", where=f"{self.hub}/{split}:{number}")
            for number, row in enumerate(hub_rows(self.hub, split, owner="GSM8K", config="main"), 1)
        ]
