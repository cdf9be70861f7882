"""Marks of tests."""

import pytest


def fast(cases, *kept):
    """The cases as parameters of a test: those that are kept stand for their kind, the others are slow."""
    assert set(kept) <= set(cases), set(kept) - set(cases)
    return [pytest.param(case, marks=[] if case in kept else [pytest.mark.slow]) for case in cases]
