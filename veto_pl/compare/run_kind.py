"""What a study asks of the kind of its runs: how they train and are tested, and what they leave to be shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veto_pl.compare.results import Answer
from veto_pl.report.pictures import Picture

Settings = dict[str, Any]
"""A part of a configuration of a training, as nested mappings."""


@dataclass(frozen=True)
class RunKind(ABC):
    """A kind of runs.

    Attributes:
        command: the words between `veto-pl` and `fit`.
        fit_options: of each training.
        entries: of a study that does not have them.
        search: likewise, of its `search`.
        metric: of each evaluation, which the table shows by default.
        budgets: by what the runs can be limited.
        counted: what `train/tokens` counts.
    """

    command: tuple[str, ...] = ()
    fit_options: tuple[str, ...] = ()
    metric: str = "accuracy"
    budgets: tuple[str, ...] = ("steps", "tokens", "turns", "seconds")
    counted: str = "completion tokens"

    @property
    @abstractmethod
    def entries(self) -> Settings:
        """Return what a study has where its file does not say it."""

    @abstractmethod
    def command_line(self) -> Any:
        """Return the class of the command line, a `VetoCLI`; it is imported here, which takes seconds."""

    def has_test_rows(self, data: Any) -> bool:
        """Return whether a data module has rows for a test; True where only the test itself can say."""
        return True

    @abstractmethod
    def test_settings(self, evaluation: Settings, shown: int) -> Settings:
        """Return the settings of a test.

        Args:
            evaluation: how the student is tested, as the study says.
            shown: rows that the page shows.
        """

    @abstractmethod
    def tested_student(self, folder: Path) -> tuple[Settings, list[str]]:
        """Return the settings and the options by which a test reads the student of a finished training.

        Raises:
            VetoError: the training has left none.
        """

    def answers(self, folder: Path, count: int) -> Sequence[Answer]:
        """Return the first answers of a test, token by token; none by default.

        Raises:
            DataError: a file of the test is missing or damaged.
        """
        return ()

    def pictures(self, folder: Path) -> Sequence[Picture]:
        """Return pictures of a test: of what was sampled, and of the targets; none by default.

        Raises:
            DataError: one is damaged.
        """
        return ()
