"""Bounds that a field declares: checked when a part is made, and told in its help."""

import math
from dataclasses import dataclass

import pytest
from annotated_types import Interval
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.core.bounds import Bounded, Count, NonNegative, Positive, PositiveShare, UnitInterval, in_words, inside
from veto_pl.exceptions import ConfigurationError
from veto_pl.plugins import load_plugins

NUMBERS = st.floats() | st.integers(-3, 3)
ENDS = st.none() | st.integers(-3, 3)


@dataclass(frozen=True)
class Part(Bounded):
    """A part.

    Args:
        share: a share of the rows,
            of all of them.
        scale: multiplies them.
        k: rows to keep, or None for all.
        name: anything.
    """

    share: UnitInterval = 0.5
    scale: "Positive | str" = 1.0
    k: Count | None = None
    name: str = ""


@dataclass(frozen=True)
class Narrower(Part):
    """Another one.

    Args:
        share: a share of the rows, in [0, 1].
        scale: in other words.
    """

    scale: float = 2.0


@given(NUMBERS, ENDS, ENDS, st.booleans(), st.booleans())
def test_a_number_is_inside_where_every_comparison_holds(value, low, high, open_below, open_above):
    bound = Interval(**{"gt" if open_below else "ge": low, "lt" if open_above else "le": high})
    expected = not math.isnan(value)
    expected &= low is None or (value > low if open_below else value >= low)
    expected &= high is None or (value < high if open_above else value <= high)
    assert inside(value, bound) == expected


@given(NUMBERS)
def test_a_part_takes_exactly_what_its_bounds_admit(value):
    for name, hint in (("share", UnitInterval), ("scale", Positive)):
        if inside(value, hint.__metadata__[0]):
            assert getattr(Part(**{name: value}), name) == value
        else:
            with pytest.raises(
                ConfigurationError, match=rf"`Part\.{name}` must {'lie in' if name == 'share' else 'be above 0'}"
            ):
                Part(**{name: value})


def test_a_field_that_holds_no_number_is_not_checked():
    assert Part(scale="a schedule", k=None)
    with pytest.raises(ConfigurationError, match=r"`Part\.k` must be at least 1, got 0\."):
        Part(k=0)


def test_a_subclass_has_the_bounds_of_its_parent():
    for name in ("share", "scale"):
        with pytest.raises(ConfigurationError, match=rf"`Narrower\.{name}`"):
            Narrower(**{name: -2})


def test_the_docstring_tells_the_bounds():
    lines = Part.__doc__.splitlines()
    assert "        share: a share of the rows," in lines
    assert "            of all of them (in [0, 1])." in lines
    assert "        scale: multiplies them (above 0 and finite)." in lines
    assert "        k: rows to keep, or None for all (at least 1)." in lines
    assert "        name: anything." in lines


def test_a_docstring_tells_the_bound_of_a_parents_field_that_it_describes_and_none_twice():
    assert "        scale: in other words (above 0 and finite)." in Narrower.__doc__.splitlines()
    assert "        share: a share of the rows, in [0, 1]." in Narrower.__doc__.splitlines()


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (UnitInterval, "in [0, 1]"),
        (PositiveShare, "in (0, 1]"),
        (NonNegative, "at least 0 and finite"),
        (Count, "at least 1"),
    ],
)
def test_bounds_in_words(hint, words):
    assert in_words(hint.__metadata__[0]) == words


def test_every_part_with_checks_of_its_own_checks_its_bounds_too():
    """A `__post_init__` that forgets those of the parent would switch the bounds off, silently."""
    load_plugins()
    kinds = {kind for kind in _below(Bounded) if kind.__module__.startswith("veto_pl.")}
    own = {kind for kind in kinds if "__post_init__" in vars(kind) and kind is not Bounded}
    forgetful = {
        kind.__name__ for kind in own
        if not {"__post_init__", "check_bounds"} & {*kind.__post_init__.__code__.co_names}
    }  # fmt: skip
    assert own
    assert forgetful == set()


def _below(kind):
    return {kind}.union(*map(_below, kind.__subclasses__()))
