"""A task whose completions are judged by another reward than its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from veto_pl.data.rewards import ExactMatch
from veto_pl.data.tasks.rows import Rows
from veto_pl.seams import Example, Reward, Task, Template


@dataclass(frozen=True, kw_only=True)
class Judged(Task):
    """The rows of a task, judged by a reward that the run names.

    Args:
        task: the rows.
        verifier: scores completions.
    """

    task: Task
    verifier: Reward

    @classmethod
    def examples(cls, folder: Path) -> tuple[Judged, ...]:
        return (cls(task=Rows.examples(folder)[0], verifier=ExactMatch()),)

    def load(self, split: str) -> Iterable[Example]:
        """Return the rows of the task."""
        return self.task.load(split)

    def reward(self, example: Example, completion: str) -> float:
        """Return the verifier's score."""
        return self.verifier(example, completion)

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the verifier's score of each pair."""
        return self.verifier.batch(examples, completions)

    @property
    def judges(self) -> bool:
        """Whether the verifier does."""
        return self.verifier.judges

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the teachers that rows of the task ask for."""
        return self.task.teachers

    @property
    def stop(self) -> tuple[str, ...]:
        """Return the strings that end a completion of the task."""
        return self.task.stop

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of the task's data sets."""
        return self.task.sources

    def shown_by(self, template: Template) -> Template:
        """Return the template of the task's rows."""
        return self.task.shown_by(template)
