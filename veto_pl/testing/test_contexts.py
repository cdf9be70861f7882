"""Every installed context of the teacher: it reads another prompt perhaps, and always the student's completion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from veto_pl.plugins import load_plugins
from veto_pl.seams import Models, Sequences, Step, TeacherContext
from veto_pl.testing.examples import installed
from veto_pl.testing.rows import TOTAL, contents, difference, tiny_prompts
from veto_pl.testing.test_rollouts import check_fields, name
from veto_pl.testing.tiny import tiny_models

load_plugins()

STEP = Step(3, TOTAL)
PROMPT_OF_ROW = [0, 0, 1, 2, 2, 3]
WRITTEN = [1, 2, 3, 0, 2, 1]
"""The reference that each row has for its completion."""
REWARDS = [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
PADDINGS = [(0, 0), (3, 0), (0, 2), (1, 4)]

CONTEXTS = installed(TeacherContext)

each = pytest.mark.parametrize("context", CONTEXTS, ids=name)


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models that all tests share, since none trains them."""
    return tiny_models("gpt2")


def answered(models: Models) -> Sequences:
    """Return completions of the tiny prompts, two of some; the last token of one row does not count."""
    batch, prompts, texts = tiny_prompts(models), torch.tensor(PROMPT_OF_ROW), torch.tensor(WRITTEN)
    given = Sequences.join(batch.rows(prompts), batch.completion_ids[texts], batch.completion_mask[texts])
    counts = given.loss_mask.clone()
    counts[3, counts[3].nonzero()[-1]] = False
    return replace(
        given,
        loss_mask=counts,
        prompt_rows=prompts,
        prompts=batch,
        on_policy=torch.ones(len(prompts), dtype=torch.bool),
        rewards=torch.tensor(REWARDS),
    )


def padded(sequences: Sequences, left: int, right: int) -> Sequences:
    """Return the rows with more padding, filled with arbitrary ids."""
    grids = {"attention_mask": False, "loss_mask": False, "input_ids": 5}
    wider: dict[str, Any] = {key: pad(getattr(sequences, key), (left, right), value=x) for key, x in grids.items()}
    return replace(sequences, **wider)


@each
@pytest.mark.parametrize(("left", "right"), PADDINGS)
def test_the_teacher_reads_the_same_completions(context: TeacherContext, models: Models, left: int, right: int) -> None:
    """Check that the same tokens of the same rows count for the teacher, wherever there is padding."""
    sequences = padded(answered(models), left, right)
    teacher_rows = context(sequences, models, STEP)
    check_fields(teacher_rows)
    assert len(teacher_rows) == len(sequences), (
        f"There must be a teacher's row for each of {len(sequences)}, got {len(teacher_rows)}."
    )
    assert not (teacher_rows.loss_mask & ~teacher_rows.attention_mask).any(), "`loss_mask` must be False on padding."
    counts, expected = teacher_rows.predictions.sum(1).tolist(), sequences.predictions.sum(1).tolist()
    assert counts == expected, f"The teacher's rows must predict {expected} tokens, as the student's do, got {counts}."
    for row, (ids, wanted) in enumerate(zip(teacher_rows.completions(), sequences.completions(), strict=True)):
        assert torch.equal(ids, wanted), (
            f"The teacher's row {row} must hold the completion {wanted.tolist()}, got {ids.tolist()}."
        )


@each
@pytest.mark.parametrize(("left", "right"), PADDINGS[1:])
def test_padding_tells_the_teacher_nothing(context: TeacherContext, models: Models, left: int, right: int) -> None:
    """Check that the ids and the place of padding do not change what the teacher reads."""
    sequences = answered(models)
    plain, wide = (context(rows, models, STEP) for rows in (sequences, padded(sequences, left, right)))
    found = difference(plain, wide)
    assert not found, f"Rows with more padding have another text for the teacher: {found}."


@each
def test_no_rows_give_no_rows(context: TeacherContext, models: Models) -> None:
    """Check that no rows give no rows, as a rank may have none at a step."""
    nobody = answered(models).rows(torch.arange(0))
    teacher_rows = context(nobody, models, STEP)
    assert len(teacher_rows) == 0, f"No rows must give no rows, got {len(teacher_rows)}."
    check_fields(teacher_rows)
    assert len(context.informed(nobody)) == 0, "`informed` must say nothing of no rows."


@each
@pytest.mark.parametrize("rows", [[0, 1], [2, 5], [3, 4]], ids=str)
def test_a_prompt_gets_the_same_text_alone(context: TeacherContext, models: Models, rows: list[int]) -> None:
    """Check that a part of the prompts gives the same rows as all of them."""
    check_alone(context, models, rows)


@pytest.mark.parametrize("context", [x for x in CONTEXTS if not (x.compares_completions or x.needs_rewards)], ids=name)
@pytest.mark.parametrize("row", range(len(PROMPT_OF_ROW)))
def test_a_row_gets_the_same_text_alone(context: TeacherContext, models: Models, row: int) -> None:
    """Check that a single row gives the same as the batch, unless the context compares completions."""
    check_alone(context, models, [row])


def check_alone(context: TeacherContext, models: Models, rows: list[int]) -> None:
    """Assert that some rows alone give the same as among all rows."""
    sequences, index = answered(models), torch.tensor(rows)
    found = difference(context(sequences, models, STEP).rows(index), context(sequences.rows(index), models, STEP))
    assert not found, f"The rows {rows} have another text for the teacher without the others: {found}."


@each
def test_informed_is_one_flag_for_each_row(context: TeacherContext, models: Models) -> None:
    """Check that `informed` is a [B] bool tensor."""
    sequences = answered(models)
    flags = context.informed(sequences)
    assert (flags.dtype, tuple(flags.shape)) == (torch.bool, (len(sequences),)), (
        f"`informed` must be bool of shape ({len(sequences)},), got {flags.dtype} of shape {tuple(flags.shape)}."
    )


@each
def test_sequences_are_left_alone(context: TeacherContext, models: Models) -> None:
    """Check that nothing is changed in place, since the student is scored on the same tensors afterwards."""
    sequences = answered(models)
    assert sequences.prompts is not None
    before = [contents(part) for part in (sequences, sequences.prompts)]
    context(sequences, models, STEP)
    context.informed(sequences)
    after = [contents(part) for part in (sequences, sequences.prompts)]
    for was, now in zip(before, after, strict=True):
        changed = [key for key in was if was[key] != now[key]]
        assert not changed, f"The context must not change `{changed[0]}` in place."
