"""Units: what two tokenisations of one text have in common, against an aligner that only compares strings."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.functional.units import Units, joined_units, minimal_units, spread_logp, unit_sums

quick = settings(deadline=None, max_examples=40)
texts = st.text("ab4 é🙂", min_size=1, max_size=12).map(str.encode)


@st.composite
def cut_texts(draw, sides=2):
    """A text, cut at random bytes, once for each side."""
    text = draw(texts)
    places = [sorted(draw(st.sets(st.integers(1, max(len(text) - 1, 1))))) for _ in range(sides)]
    return [cut(text, some) for some in places]


def cut(text, places):
    ends = [0, *(place for place in places if place < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def lengths(pieces):
    return torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)


def aligned(mine, theirs):
    """By strings alone: groups of tokens grow, the shorter text first, until both are the same."""
    groups, i, j = [], 0, 0
    while i < len(mine) and j < len(theirs):
        start, one, other = (i, j), mine[i], theirs[j]
        i, j = i + 1, j + 1
        while one != other:
            if len(one) < len(other):
                one, i = one + mine[i], i + 1
            else:
                other, j = other + theirs[j], j + 1
        groups.append((range(start[0], i), range(start[1], j)))
    return groups


def groups_of(units):
    """The tokens of each unit on both sides, which lie side by side."""
    sides = units.student.tolist(), units.teacher.tolist()
    starts = [[side.index(u) for side in sides] for u in range(units.count)]
    return [
        tuple(range(start, start + side.count(u)) for start, side in zip(starts[u], sides, strict=True))
        for u in range(units.count)
    ]


@quick
@given(cut_texts())
def test_units_are_those_of_an_aligner_of_strings(sides):
    mine, theirs = sides
    units = minimal_units(lengths(mine), lengths(theirs))
    assert groups_of(units) == aligned(mine, theirs)
    assert units.first[0].tolist() == [group[0] for group, _ in aligned(mine, theirs)]
    assert units.sizes[1].tolist() == [len(group) for _, group in aligned(mine, theirs)]
    rest = set(range(len(mine))) - set(units.first[0].tolist())
    assert units.others.tolist() == sorted(rest)


@quick
@given(cut_texts())
def test_every_unit_is_the_same_bytes_on_both_sides_and_none_can_be_divided(sides):
    mine, theirs = sides
    units = minimal_units(lengths(mine), lengths(theirs))
    for one, other in groups_of(units):
        ends = [
            {sum(len(side[i]) for i in group[: k + 1]) for k in range(len(group))}
            for side, group in ((mine, one), (theirs, other))
        ]
        assert b"".join(mine[i] for i in one) == b"".join(theirs[j] for j in other)
        assert len(ends[0] & ends[1]) == 1
    assert -1 not in units.student.tolist() + units.teacher.tolist()


@quick
@given(cut_texts(sides=1))
def test_the_same_tokens_are_one_unit_each(sides):
    units = minimal_units(lengths(sides[0]), lengths(sides[0]))
    assert units.student.tolist() == units.teacher.tolist() == list(range(len(sides[0])))
    assert units.single.all()


@quick
@given(cut_texts(), st.integers(0, 12))
def test_no_unit_reaches_behind_the_limit_and_those_in_front_of_it_stay(sides, limit):
    mine, theirs = (lengths(side) for side in sides)
    whole, part = minimal_units(mine, theirs), minimal_units(mine, theirs, limit)
    reached = unit_sums(mine, whole.student, whole.count).cumsum(0)
    assert part.count == int((reached <= limit).sum())
    assert part.student.tolist() == [u if u < part.count else -1 for u in whole.student.tolist()]


def test_an_empty_token_belongs_to_the_unit_in_front_of_it_or_to_the_first():
    units = minimal_units(torch.tensor([0, 2, 0, 1]), torch.tensor([2, 1, 0]))
    assert units.student.tolist() == [0, 0, 0, 1]
    assert units.teacher.tolist() == [0, 1, 1]


@quick
@given(st.lists(cut_texts(), max_size=4))
def test_texts_one_behind_the_other_are_aligned_each_by_itself(pairs):
    parts = [minimal_units(lengths(mine), lengths(theirs), 3) for mine, theirs in pairs]
    whole = joined_units(parts)
    assert whole.count == sum(part.count for part in parts)
    found = [(whole.student == u).sum() for u in range(whole.count)]
    assert found == [(part.student == u).sum() for part in parts for u in range(part.count)]
    assert len(whole.teacher) == sum(len(theirs) for _, theirs in pairs)


@quick
@given(cut_texts(), st.data())
def test_some_units_are_numbered_anew(sides, data):
    units = minimal_units(*(lengths(side) for side in sides))
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=units.count, max_size=units.count)))
    some = units.only(kept)
    wanted = [group for group, keep in zip(groups_of(units), kept.tolist(), strict=True) if keep]
    assert groups_of(some) == wanted


def test_units_on_another_device_know_what_was_known():
    units = minimal_units(torch.tensor([1, 1, 2]), torch.tensor([2, 2])).to("meta")
    assert units.student.device.type == units.first[0].device.type == units.others.device.type == "meta"


def logps(count, data):
    numbers = st.floats(-4, -0.01)
    return torch.tensor(data.draw(st.lists(numbers, min_size=count, max_size=count)), dtype=torch.float64)


@quick
@given(cut_texts(), st.data())
def test_spread_log_ratios_of_a_unit_add_up_to_that_of_the_unit(sides, data):
    units = minimal_units(*(lengths(side) for side in sides), limit=data.draw(st.integers(0, 12)))
    mine, theirs = (logps(len(side), data) for side in sides)
    ratio = spread_logp(mine, theirs, units) - mine
    for one, other in groups_of(units):
        gap = sum(theirs[j] for j in other) - sum(mine[i] for i in one)
        for i in one:
            assert float(ratio[i]) == pytest.approx(float(gap) / len(one), abs=1e-9)
    assert (ratio[units.student < 0] == 0).all()


@quick
@given(cut_texts(sides=1), st.data())
def test_with_one_token_a_unit_the_teacher_speaks_for_itself(sides, data):
    units = minimal_units(lengths(sides[0]), lengths(sides[0]))
    mine, theirs = logps(len(sides[0]), data), logps(len(sides[0]), data)
    torch.testing.assert_close(spread_logp(mine, theirs, units), theirs)


def test_the_strict_form_credits_units_of_one_token_alone_and_holds_everything_fixed():
    units = minimal_units(torch.tensor([1, 1, 1]), torch.tensor([2, 1]))
    mine = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    spread = spread_logp(mine, torch.tensor([-1.0, -0.5]), units.only(units.single))
    assert spread.tolist() == [-1.0, -2.0, -0.5]
    assert not spread.requires_grad


def test_what_tokens_without_a_unit_have_is_ignored_even_where_it_is_no_number():
    units = Units(torch.tensor([0, -1, 1]), torch.tensor([0, 1]), 2)
    values = torch.tensor([1.0, math.nan, 2.0], requires_grad=True)
    sums = unit_sums(values, units.student, 2)
    sums.sum().backward()
    assert sums.tolist() == [1.0, 2.0]
    assert values.grad.tolist() == [1.0, 0.0, 1.0]


def binary_kl(student, teacher):
    """Of an outcome against all others, from its log-probabilities."""
    p, q = math.exp(student), math.exp(teacher)
    rest = (1 - p) * (math.log1p(-p) - math.log1p(-q)) if p < 1 else 0.0
    return p * (student - teacher) + rest


@quick
@given(cut_texts(), st.data())
def test_coarser_units_never_raise_the_kl(sides, data):
    """The chain rule: the KL of a text of units, each against all that could stand in its place, is at least that of
    the same text as fewer and longer units."""
    units = minimal_units(*(lengths(side) for side in sides))
    mine, theirs = (logps(len(side), data) for side in sides)
    ends = sorted(data.draw(st.sets(st.integers(1, units.count))) | {units.count})
    coarse_of = torch.tensor([sum(end <= u for end in ends) for u in range(units.count)])
    coarse = Units(coarse_of[units.student], coarse_of[units.teacher], len(ends))

    def divergence(of):
        student, teacher = unit_sums(mine, of.student, of.count), unit_sums(theirs, of.teacher, of.count)
        reached = [0.0, *student.cumsum(0).tolist()]
        kls = (binary_kl(*pair) for pair in zip(student.tolist(), teacher.tolist(), strict=True))
        return sum(math.exp(before) * kl for before, kl in zip(reached, kls, strict=False))

    assert divergence(coarse) <= divergence(units) + 1e-9
