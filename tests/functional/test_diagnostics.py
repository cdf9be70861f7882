"""What is logged beside a loss, against the plain definition."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.functional.diagnostics import comparison

scores = st.lists(st.sampled_from([-math.inf, -3.0, 0.0, 0.5, 1.0]), min_size=4, max_size=4).filter(
    lambda row: max(row) > -math.inf
)


@given(student=scores, teacher=scores)
def test_models_agree_where_an_id_is_likeliest_for_both_ties_included(student, teacher):
    logp = [torch.tensor(row).log_softmax(-1) for row in (student, teacher)]
    first, second = ({place for place, value in enumerate(row) if value == max(row)} for row in (student, teacher))
    assert bool(comparison(*logp)["agreement"]) == bool(first & second)


def test_likeliest_ids_that_differ_by_more_than_rounding_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4000, 50, generator=generator).log_softmax(-1) for _ in range(2))
    teacher = (teacher + student).log_softmax(-1)
    places = student.argmax(-1) == teacher.argmax(-1)
    assert 0.1 < places.float().mean() < 0.9
    assert torch.equal(comparison(student, teacher)["agreement"], places.float())
