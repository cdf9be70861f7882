"""The kinds of runs that a study can compare, by their names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from veto_pl.compare.results import Answer
from veto_pl.compare.run_kind import RunKind, Settings
from veto_pl.exceptions import DataError, VetoError
from veto_pl.report.pictures import Picture, read_picture
from veto_pl.storage.run_folder import PICTURES


@dataclass(frozen=True)
class Texts(RunKind):
    """Language models: `veto-pl fit`."""

    fit_options: tuple[str, ...] = ("--samples.show=false",)

    @property
    def entries(self) -> Settings:
        """Return a greedy evaluation and a search by accuracy."""
        return {
            "evaluations": {"greedy": {"temperature": 0.0}},
            "search": {"metric": "validation/accuracy", "mode": "max"},
        }

    def command_line(self) -> Any:
        """Return the command line of texts."""
        from veto_pl.cli.build import VetoCLI

        return VetoCLI

    def has_test_rows(self, data: Any) -> bool:
        """Return whether the task has rows for a test, or reads a stream of them."""
        rows = data.task.load("test")
        return not isinstance(rows, Sized) or len(rows) > 0

    def test_settings(self, evaluation: Settings, shown: int) -> Settings:
        """Return how answers are sampled, and how many are written token by token."""
        return {"model": {"evaluation": evaluation}, "answers": {"annotated": shown}}

    def tested_student(self, folder: Path) -> tuple[Settings, list[str]]:
        """Return the student of the export."""
        student = {"class_path": "Pretrained", "init_args": {"path": str(folder / "export")}}
        return {"model": {"student": student}}, []

    def answers(self, folder: Path, count: int) -> Sequence[Answer]:
        """Return the answers that are written token by token."""
        path = folder / "answers.jsonl"
        try:
            return tuple(islice(_answers(path), count))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: {type(error).__name__}: {error}.") from error


def _answers(path: Path) -> Iterator[Answer]:
    """Yield the answers that are written token by token."""
    adapter = TypeAdapter(Answer)
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if "tokens" in row:
                yield adapter.validate_python(row)


@dataclass(frozen=True)
class Denoising(RunKind):
    """Denoising models: `veto-pl diffusion fit`."""

    command: tuple[str, ...] = ("diffusion",)
    metric: str = "energy_distance"
    budgets: tuple[str, ...] = ("steps", "tokens", "seconds")
    counted: str = "states"

    @property
    def entries(self) -> Settings:
        """Return an evaluation as in training, and a search by the energy distance."""
        return {"evaluations": {"few": {}}, "search": {"metric": "validation/energy_distance", "mode": "min"}}

    def command_line(self) -> Any:
        """Return the command line of denoising students."""
        from veto_pl.cli.denoising_cli import DenoisingCLI

        return DenoisingCLI

    def test_settings(self, evaluation: Settings, shown: int) -> Settings:
        """Return the steps of sampling, and how many images a picture shows."""
        return {"model": {"evaluation": evaluation}, "files": {"shown": shown}}

    def tested_student(self, folder: Path) -> tuple[Settings, list[str]]:
        """Return the last checkpoint; raise `VetoError` where there is none."""
        checkpoint = folder / "checkpoints" / "last.ckpt"
        if not checkpoint.exists():
            raise VetoError(
                f"`{checkpoint}` is missing, from which the student is tested. Leave `checkpoint.save_last`, "
                "`checkpoint.dirpath` and `trainer.enable_checkpointing` of the study as they are by default."
            )
        return {}, [f"--ckpt_path={checkpoint}"]

    def pictures(self, folder: Path) -> Sequence[Picture]:
        """Return the pictures of the first rows."""
        drawn = {"samples": "test.png", "targets": "test-targets.png"}
        paths = {title: folder / PICTURES / name for title, name in drawn.items()}
        return tuple(read_picture(path, title) for title, path in paths.items() if path.is_file())


KINDS: dict[str, RunKind] = {"texts": Texts(), "denoising": Denoising()}
