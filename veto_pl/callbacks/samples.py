"""Sample completions of every validation, as a file and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from veto_pl.callbacks.logged_tables import log_table
from veto_pl.core.mistakes import check_number
from veto_pl.core.teacher_notes import in_lines
from veto_pl.exceptions import DataError
from veto_pl.seams import Picture
from veto_pl.seams.playing import Line, spoken_in
from veto_pl.storage.journals import Journal
from veto_pl.storage.run_folder import SAMPLES, run_folder
from veto_pl.storage.waiting_lines import WaitingLines
from veto_pl.training.evaluation import Evaluation

COLUMNS = ("prompt", "completion", "reference", "reward")
"""What a table has of a sample; the file has all of it."""
TEACHERS = "teachers"
"""The column of what teachers have said of a row."""


class SampleTable(L.Callback, Journal):
    """Appends the first completions of each validation to `samples.jsonl` in the run folder, and prints them.

    Loggers that show tables get them too. Of an episode with an environment the file holds the `dialogue` line by line,
    and tables show the turns and replies. What teachers have said of a row, as in a debate, is one more column,
    without the texts that the file holds.

    Args:
        number: completions kept per validation; 0 switches the callback off.
        show: whether they are also printed.
        width: characters of a text that are printed, the last ones of a prompt; the file holds all of them.

    Raises:
        ConfigurationError: a number out of range.
    """

    journal = SAMPLES

    def __init__(self, number: int = 8, show: bool = True, width: int = 200) -> None:
        check_number("SampleTable.number", number, 0)
        check_number("SampleTable.width", width, 1)
        self.number = number
        self.show = show
        self.width = width
        self._rows: list[dict[str, Any]] = []
        self._lines: WaitingLines | None = None
        self._written = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the file of samples. Collective: call it on every rank."""
        self._find(trainer)

    def position(self) -> int:
        return self._written

    def cut(self, trainer: L.Trainer, rows: int, step: int) -> None:
        lines = self._find(trainer)
        if trainer.is_global_zero:
            lines.cut(rows)
            self._written = lines.position()

    def bring_to_disk(self) -> None:
        if self._lines is not None:
            self._lines.bring_to_disk()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Discard the samples of the validation before."""
        self._rows = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the first `number` rows of the validation, on the first rank."""
        missing = self.number - len(self._rows)
        if missing > 0 and trainer.is_global_zero and outputs is not None:
            evaluation: Evaluation = outputs["evaluation"]
            for row, images in zip(evaluation.rows()[:missing], evaluation.images(), strict=False):
                self._rows.append(row | ({"thumbnails": _thumbnails(images)} if images else {}))

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and print the rows that were kept."""
        if not self._rows:
            return
        step = getattr(pl_module, "steps_done", trainer.global_step)
        if self._lines is not None:
            self._lines.add({"step": step, **row} for row in self._rows)
            self._written += len(self._rows)
        rows = zip(self._rows, self._notes(), strict=True)
        shown = [{name: row[name] for name in COLUMNS} | _spoken(row) | note for row, note in rows]
        log_table(trainer, "validation/samples", shown, step)
        if self.show:
            Console().print(self._table(step))

    def _find(self, trainer: L.Trainer) -> WaitingLines:
        """Return the file of samples in the run folder. Collective: call it on every rank."""
        path = run_folder(trainer) / SAMPLES
        if self._lines is None or self._lines.path != path:
            self._lines = WaitingLines(path)
            self._written = self._lines.position()
        return self._lines

    def _table(self, step: int) -> Table:
        notes = self._notes()
        table = Table(*COLUMNS, *notes[0], title=f"samples at step {step}")
        for row, note in zip(self._rows, notes, strict=True):
            told = row | _spoken(row, self.width)
            prompt, *texts = (str(told[name] or "") for name in COLUMNS[:-1])
            texts = texts if "dialogue" in row else [_first(text, self.width) for text in texts]
            cells = [_last(prompt, self.width), *texts]
            cells += [f"{row['reward']:g}", *note.values()]
            table.add_row(*(cell.replace("[", r"\[") for cell in cells))  # no mark-up of rich
        return table

    def _notes(self) -> list[dict[str, str]]:
        """Return for each row what teachers have said of it, as a column; no column where none has said anything."""
        lines = [in_lines(row.get("said") or {}) for row in self._rows]
        return [{TEACHERS: line} if any(lines) else {} for line in lines]


def _thumbnails(images: Iterable[Picture]) -> list[str]:
    """Return small copies for pages; none of an image that is gone."""
    found = []
    for image in images:
        with suppress(DataError):
            found.append(image.thumbnail())
    return found


def _spoken(row: Mapping[str, Any], width: int | None = None) -> dict[str, str]:
    """Return as `completion` an episode's turns and replies, each cut to `width` characters; nothing for an answer."""
    said = spoken_in(Line(**line) for line in row.get("dialogue") or ())
    texts = [(one.role, one.text if width is None else _first(one.text, width)) for one in said]
    return {"completion": "\n".join(f"{role}: {text}" for role, text in texts)} if texts else {}


def _first(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _last(text: str, width: int) -> str:
    """Return the end of a text: in a conversation that is the question, behind what all prompts begin with."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
