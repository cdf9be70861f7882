"""The laws of templates can fail: each is broken by somebody, who is reported."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

from veto_pl.data import ChatTemplate
from veto_pl.seams import Template, Turn
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
SHOWN, AGAIN = laws.test_different_prompts_have_different_texts, laws.test_a_text_can_be_made_again_by_an_export
SAID = laws.test_conversations_are_shown_with_their_references


class _Exported(_Template):
    """Says nothing of what stands around a prompt."""

    def chat_template(self, tokenizer):
        return "{{ messages[0].content }}"


class _Talking(_Template):
    """Renders conversations as it is told."""

    def __init__(self, change, opening="Where?"):
        self.change, self.show = change, lambda example: opening

    def rendered(self, example, tokenizer):
        return self.change(ChatTemplate().rendered(example, tokenizer))


def around(text):
    """A change of what stands in front of each reference and of what goes through it."""
    return lambda shown: replace(shown, turns=tuple(Turn(text, text) for _ in shown.turns))


ALONE = [
    (SHOWN, "are both shown as 'Answer!'", _Template(lambda example: "Answer!")),
    (SHOWN, "are both shown as", _Template(lambda example: example.prompt[:100])),
    (SHOWN, "are both shown as", _Template(lambda example: example.prompt[-100:])),
    (AGAIN, "Return None if no chat template can", _Exported(lambda example: f"Q: {example.prompt}")),
    (SAID, "must be shown, got 'Where", _Talking(lambda shown: replace(shown, text="Where?"))),
    (SAID, "got 1 turns", _Talking(lambda shown: replace(shown, turns=shown.turns[:1]))),
    (SAID, "must hold it, got 'When", _Talking(around("When?"))),
    (SAID, "must not hold it, got 'There. Then.'", _Talking(around("There. Then."))),
    (SAID, "A prompt must not hold the first reference", _Talking(lambda shown: shown, "There.")),
]
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


@pytest.mark.parametrize(("law", "message", "template"), ALONE)
def test_who_shows_too_little_or_too_much_is_reported(law, message, template):
    with pytest.raises(AssertionError, match=message):
        law(template)


def test_who_shows_all_of_it_is_not():
    SHOWN(_Template(lambda example: f"Q: {example.prompt}"))
    AGAIN(_Exported(lambda example: example.prompt))
    SAID(_Talking(lambda shown: shown))


def test_each_law_is_broken_by_somebody():
    known = SimpleNamespace(**vars(laws))
    assert {law for law, *_ in (*BROKEN, *ALONE)} == {
        law for name, law in vars(known).items() if name.startswith("test_")
    }
