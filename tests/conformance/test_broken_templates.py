"""The laws of templates can fail: each is broken by somebody, who is reported."""

import itertools
from types import SimpleNamespace

import pytest

from veto_pl.seams import Template
from veto_pl.testing import test_templates as laws


class _Template(Template):
    def __init__(self, show):
        self.show = show

    def __call__(self, example, tokenizer):
        return self.show(example)


def spoil(example):
    example.row["prompt"] = "other"
    return example.prompt


COUNT = itertools.count()
ONE, TOLD = laws.test_a_row_has_one_text, laws.test_control_words_of_a_row_can_be_told_from_those_of_the_template
BROKEN = [
    (ONE, "Let the row alone decide", lambda example: f"{next(COUNT)}"),
    (ONE, "must not be changed in place", spoil),
    (TOLD, "Pass the texts", lambda example: f"{len(example.prompt)}"),
]


@pytest.mark.parametrize(("law", "message", "show"), BROKEN)
def test_who_breaks_a_law_is_reported(law, message, show):
    with pytest.raises(AssertionError, match=message):
        law(_Template(show), laws.TEXTS[1])


@pytest.mark.parametrize("law", [ONE, TOLD])
@pytest.mark.parametrize("text", laws.TEXTS)
def test_who_shows_well_is_not(law, text):
    law(_Template(lambda example: f"<s>{example.prompt}"), text)
    law(_Template(lambda example: example.row["unknown"]), text)


def test_each_law_is_broken_by_somebody():
    known = SimpleNamespace(**vars(laws))
    assert {law for law, *_ in BROKEN} == {law for name, law in vars(known).items() if name.startswith("test_")}
