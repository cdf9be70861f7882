"""Every installed task: its rows are the same each time, and judged as they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from veto_pl.data import ExampleStream
from veto_pl.plugins import load_plugins
from veto_pl.seams import Example, Law, Task, Template
from veto_pl.testing.examples import installed
from veto_pl.testing.test_rewards import ODD, check_score

load_plugins()

SPLITS = ("train", "validation", "test")
MOST = 64
"""Rows of a split that are looked at."""
TASKS = installed(Task)
each = pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
of_each_split = pytest.mark.parametrize("split", SPLITS)


def promising(law: Law) -> pytest.MarkDecorator:
    """Return the decorator that makes one test of every task whose class promises the law."""
    found = [task for task in TASKS if law in task.laws]
    return pytest.mark.parametrize("task", found, ids=lambda task: type(task).__name__)


def rows(task: Task, split: str, most: int | None = MOST) -> list[Example]:
    """Return the first rows of a split, or all of them."""
    return list(islice(task.load(split), most))


@each
def test_there_are_rows_to_train_on(task: Task) -> None:
    """Check that there is something to train on, without which the other tests would prove nothing."""
    assert rows(task, "train", 1), (
        "The split `train` has no rows. Give the class `examples()` with a task that has some."
    )


@each
@of_each_split
def test_rows_are_examples(task: Task, split: str) -> None:
    """Check the types of each row's fields, and that a split to validate or test on has a length."""
    loaded = task.load(split)
    assert isinstance(loaded, Sequence) or (split == "train" and isinstance(loaded, ExampleStream)), (
        f"`load({split!r})` must return a sequence{', or an `ExampleStream`' if split == 'train' else ''}, got "
        f"{type(loaded).__name__}."
    )
    for number, row in enumerate(islice(loaded, MOST)):
        assert isinstance(row, Example), f"Row {number} of `{split}` must be an `Example`, got {row!r}."
        references = (*row.alternatives, *([] if row.completion is None else [row.completion]))
        for text in (row.prompt, row.source, row.teacher, *references):
            assert isinstance(text, str), f"Row {number} of `{split}` has {text!r} where there must be a text: {row}."
        assert not task.sources or row.source in task.sources, (
            f"Row {number} of `{split}` comes from {row.source!r}, but `sources` are {task.sources}."
        )


@each
@of_each_split
def test_a_split_has_the_same_rows_each_time(task: Task, split: str) -> None:
    """Check that the rows are the same in every epoch and on every rank, and that an index leads to its row."""
    loaded: Any = task.load(split)
    first, again = list(islice(loaded, MOST)), list(islice(loaded, MOST))
    assert first == again, f"The split `{split}` gave other rows when it was read again."
    assert first == rows(task, split), f"`load({split!r})` gave other rows when it was called again."
    if isinstance(loaded, Sequence):
        assert len(loaded) == sum(1 for _ in loaded), (
            f"`{split}` has the length {len(loaded)}, and other rows than that."
        )
        assert [loaded[place] for place in reversed(range(len(first)))] == first[::-1], (
            f"`load({split!r})[i]` must be the row that comes i-th."
        )


@promising(Law.SPLITS_ARE_APART)
def test_no_row_is_in_two_splits(task: Task) -> None:
    """Check that no row to validate or test on is trained on, if the class promises that."""
    trained = {(row.prompt, row.references) for row in rows(task, "train", 10_000)}
    for split in SPLITS[1:]:
        both = [row for row in rows(task, split) if (row.prompt, row.references) in trained]
        assert not both, (
            f"A row of `{split}` is in `train` too: {both[0]}. Where that is meant: "
            "`laws = Task.laws - {Law.SPLITS_ARE_APART}`."
        )


@each
@of_each_split
def test_every_completion_has_a_finite_score(task: Task, split: str) -> None:
    """Check that no text makes the task raise, and that `rewards` gives each completion the score that it has alone."""
    for row in rows(task, split, 3):
        try:
            alone = [task.reward(row, text) for text in ODD]
        except Exception as error:
            raise AssertionError(
                f"`reward` raised {error!r} for a completion of {row}. It returns a number."
            ) from error
        for score, text in zip(alone, ODD, strict=True):
            check_score(score, f"`reward` gives the completion {text!r}")
        together = task.rewards([row] * len(ODD), ODD)
        assert list(together) == pytest.approx(alone), f"`rewards` gives {together}, but one by one they are {alone}."
    assert list(task.rewards([], [])) == [], "`rewards` of no completions must be empty."


@promising(Law.REFERENCE_IS_BEST)
def test_no_row_has_the_reference_of_another(task: Task) -> None:
    """Check that the references of other rows are judged no better than a row's own, if the class promises that."""
    for split in SPLITS:
        known = [row for row in rows(task, split, 8) if row.completion is not None]
        for row in known:
            best = task.reward(row, row.completion or "")
            for other in known:
                assert task.reward(row, other.completion or "") <= best, (
                    f"{other.completion!r} is judged better than the reference of {row}, which has {best}. Are rows "
                    "and references in the same order? Where it is meant: `laws = Task.laws - {Law.REFERENCE_IS_BEST}`."
                )


@each
def test_what_a_task_says_of_a_run_can_be_used(task: Task) -> None:
    """Check the types of its stop strings and data sets, and that it returns a template."""
    assert all(isinstance(text, str) and text for text in task.stop), f"`stop` must hold texts, got {task.stop!r}."
    assert all(isinstance(name, str) and name for name in task.sources), f"`sources`: names, got {task.sources!r}."
    for template in installed(Template):
        shown = task.shown_by(template)
        assert isinstance(shown, Template), f"`shown_by` must return a template, got {shown!r}."
