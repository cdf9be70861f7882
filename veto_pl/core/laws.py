"""Mathematical laws that a class promises to keep."""

import enum


class Law(str, enum.Enum):
    """A property that a class promises; `veto_pl.testing` checks each promise on generated inputs."""

    ZERO_AT_EQUALITY = "zero where student and target agree"
    NON_NEGATIVE = "never below zero"
    PERMUTATION_INVARIANT = "unchanged when the vocabulary is renumbered"
    NORMALISED = "the target is a distribution"
    SPLIT_INVARIANT = "the same update however the batch is split"
    REFERENCE_IS_BEST = "no other text is judged better than the row's own reference"
    SPLITS_ARE_APART = "no row to validate or test on is trained on"
    PROMPT_IS_SHOWN = "rows with different prompts have different texts"
    ORDER_IS_IGNORED = "two answers in the other order get the opposite verdict"
