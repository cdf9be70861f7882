"""The laws of contexts can fail: each is broken by somebody, who is reported."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from veto_pl.seams import TeacherContext
from veto_pl.testing import test_contexts as laws
from veto_pl.testing.tiny import tiny_models


@dataclass(frozen=True)
class _Context(TeacherContext):
    """Tells what it is told to tell."""

    tell: Callable = lambda rows: rows
    inform: Callable = lambda rows: rows.on_policy

    def __call__(self, sequences, models, step):
        return self.tell(sequences)

    def informed(self, sequences):
        return self.inform(sequences)


def with_field(name, value):
    return _Context(lambda rows: replace(rows, **{name: value(rows)}))


def counting_prompt(rows, count):
    """The prompts' ids moved by a number of each row."""
    moved = (rows.input_ids + count[:, None]) % 20
    return torch.where(rows.loss_mask, rows.input_ids, moved)


def all_rows(rows):
    return torch.full((len(rows),), len(rows))


def rows_of_the_prompt(rows):
    return (rows.prompt_rows[:, None] == rows.prompt_rows).sum(1)


def without_the_last_token(rows):
    return rows.loss_mask & (rows.loss_mask.cumsum(1) < rows.loss_mask.sum(1, keepdim=True))


def somebody(rows):
    return rows if len(rows) else laws.answered(tiny_models())


def in_place(rows):
    rows.on_policy.fill_(False)
    return rows


def numbers_in_place(rows):
    rows.prompts.numbers.add_(1)
    return rows


COMPLETIONS = laws.test_the_teacher_reads_the_same_completions
PADDING = laws.test_padding_tells_the_teacher_nothing
NOBODY = laws.test_no_rows_give_no_rows
PROMPT = laws.test_a_prompt_gets_the_same_text_alone
ROW = laws.test_a_row_gets_the_same_text_alone
INFORMED = laws.test_informed_is_one_flag_for_each_row
LEFT = laws.test_sequences_are_left_alone

BROKEN = [
    (
        COMPLETIONS,
        "a teacher's row for each of 6, got 5",
        _Context(lambda rows: rows.rows(torch.arange(len(rows) - 1))),
    ),
    (COMPLETIONS, "must be torch.int64", with_field("input_ids", lambda rows: rows.input_ids.int())),
    (COMPLETIONS, "must be False on padding", with_field("attention_mask", lambda rows: ~rows.attention_mask)),
    (COMPLETIONS, "must predict", with_field("loss_mask", without_the_last_token)),
    (COMPLETIONS, "row 0 must hold the completion", with_field("input_ids", lambda rows: rows.input_ids.flip(1))),
    (COMPLETIONS, "must predict", _Context(lambda rows: rows.rows(torch.tensor([1, 0, 2, 3, 4, 5])))),
    (PADDING, "more padding have another text", with_field("attention_mask", lambda rows: rows.attention_mask | True)),
    (NOBODY, "must give no rows, got 6", _Context(somebody)),
    (NOBODY, "must say nothing", _Context(inform=lambda rows: torch.ones(1, dtype=torch.bool))),
    (PROMPT, "without the others", with_field("input_ids", lambda rows: counting_prompt(rows, all_rows(rows)))),
    (ROW, "without the others", with_field("input_ids", lambda rows: counting_prompt(rows, rows_of_the_prompt(rows)))),
    (INFORMED, r"must be bool of shape \(6,\)", _Context(inform=lambda rows: rows.loss_mask)),
    (LEFT, "`on_policy` in place", _Context(in_place)),
    (LEFT, "`numbers` in place", _Context(numbers_in_place)),
]
ARGUMENTS = {COMPLETIONS: (0, 0), PADDING: (1, 4), PROMPT: ([0, 1],), ROW: (0,)}


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2")


@pytest.mark.parametrize(("law", "message", "context"), BROKEN, ids=[law.__name__ for law, *_ in BROKEN])
def test_who_breaks_a_law_is_reported(law, message, context, models):
    with pytest.raises(AssertionError, match=message):
        law(context, models, *ARGUMENTS.get(law, ()))


@pytest.mark.parametrize("law", {law: None for law, *_ in BROKEN}, ids=lambda law: law.__name__)
def test_who_tells_the_same_text_is_not(law, models):
    law(_Context(), models, *ARGUMENTS.get(law, ()))


def test_each_law_is_broken_by_somebody():
    assert {law for law, *_ in BROKEN} == {law for name, law in vars(laws).items() if name.startswith("test_")}
