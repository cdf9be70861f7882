"""The walk that units are compared with: as it is described, and what it loses by the way."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.functional.units import minimal_units

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def walked():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from alignment import walked
    finally:
        sys.path.remove(str(BENCHMARKS))
    return walked


def cut(text, ends):
    places = [0, *sorted(end for end in ends if 0 < end < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def test_a_piece_that_is_not_aligned_takes_the_next_token_along(walked):
    assert walked([" ", "4", "2", "x"], [" 42", "x"]) == [(4, 2)]
    assert walked(["x", "4", "2"], ["x", "42"]) == [(1, 1)]  # what is behind is lost


@settings(deadline=None, max_examples=100)
@given(text=st.text("ab4", min_size=1, max_size=12), one=st.sets(st.integers(1, 11)), other=st.sets(st.integers(1, 11)))
def test_a_segment_ends_with_each_unit_of_one_token_and_with_no_other(walked, text, one, other):
    mine, theirs = cut(text, one), cut(text, other)
    units = minimal_units(*(torch.tensor([len(piece) for piece in side]) for side in (mine, theirs)))
    segments = walked(mine, theirs)
    assert len(segments) == int(units.single.sum()) <= units.count
    last = units.first[0][units.single]
    assert sum(size for size, _ in segments) == (int(last[-1]) + 1 if len(last) else 0)
