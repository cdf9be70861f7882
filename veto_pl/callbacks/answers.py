"""The answers of a test, and its metrics, as files that a comparison reads."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.core.mistakes import check_number
from veto_pl.core.ranks import gather_on_first
from veto_pl.exceptions import VetoError
from veto_pl.storage.atomic import replacing
from veto_pl.storage.evaluation_file import TEST, write_test
from veto_pl.storage.run_folder import run_folder
from veto_pl.storage.waiting_lines import WaitingLines
from veto_pl.training.evaluation import Evaluation

ANSWERS = "answers.jsonl"


class Answers(L.Callback):
    """Writes the answers of a test into `answers.jsonl` and its metrics into `test.json`, in the run folder.

    A line is a completion: prompt, completion, reference and reward, in the order of the test split, whatever the
    number of ranks. The first completion of each of the first prompts also has its tokens as texts and, where there is
    a teacher, `forward_kl` and `reverse_kl` at each of them, in nats. Both files are there whole or not at all.

    Args:
        annotated: prompts whose first completion is written token by token.

    Raises:
        ConfigurationError: `annotated` is negative.
    """

    def __init__(self, annotated: int = 8) -> None:
        check_number("Answers.annotated", annotated, 0)
        self.annotated = annotated
        self._folder: Path | None = None
        self._open = ExitStack()
        self._lines: WaitingLines | None = None
        self._failure: VetoError | None = None
        self._prompts = self._completions = self._seen = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run folder. Collective: call it on every rank."""
        if stage == "test":
            self._folder = run_folder(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a temporary file that will replace `answers.jsonl` when the test ends."""
        self._prompts = self._completions = self._seen = 0
        if self._folder is not None and trainer.is_global_zero:
            self._lines = WaitingLines(self._open.enter_context(replacing(self._folder / ANSWERS)))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Gather the answers of this batch from every rank and write them on the first one. Collective."""
        evaluation: Evaluation = outputs["evaluation"]
        answered = gather_on_first(self._by_prompt(evaluation))
        if answered is None:
            return
        # Ranks take turns with the rows, so the rows of a batch stand between those of the batches beside it.
        for _, rows in sorted((item for part in answered for item in part), key=lambda item: item[0]):
            self._write(rows)
            self._prompts += 1
            self._completions = len(rows)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put both files in place; an error is kept, and `teardown` raises it after Lightning has printed its table."""
        if self._folder is None or self._lines is None:
            return
        try:
            self._lines.finish()
            self._open.close()
            self._write_metrics(trainer, pl_module, self._folder)
        except (VetoError, OSError) as error:
            self._open.__exit__(type(error), error, error.__traceback__)
            self._failure = VetoError(f"The answers of the test are not in {self._folder}: {error}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise `VetoError` if the files could not be written."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write_metrics(self, trainer: L.Trainer, module: L.LightningModule, folder: Path) -> None:
        write_test(trainer, module, folder, prompts=self._prompts, completions=self._completions)
        rank_zero_info(f"Wrote the answers to {folder / ANSWERS} and the metrics to {folder / TEST}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Discard the temporary file, so that the previous `answers.jsonl` stays as it was."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)

    def _by_prompt(self, evaluation: Evaluation) -> list[tuple[int, list[dict[str, Any]]]]:
        """Return, for each prompt of the batch, its index in the test split and the rows of its completions."""
        rows, size = evaluation.rows(), evaluation.generations.rewards.shape[1]
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        # Among the first of all ranks are only rows that are among the first of their own.
        for place in range(min(self.annotated - self._seen, len(groups))):
            groups[place][0] |= evaluation.annotated(place * size)
        self._seen += len(groups)
        return list(zip(evaluation.batch.numbers.tolist(), groups, strict=True))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        hidden = () if self._prompts < self.annotated else _ANNOTATIONS
        if self._lines is not None:
            self._lines.add({name: row[name] for name in row if name not in hidden} for row in rows)


_ANNOTATIONS = ("tokens", "forward_kl", "reverse_kl")
