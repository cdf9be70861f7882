"""Every installed template: the same row has the same text, and control words in it stay recognisable."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from veto_pl.data.control_words import MARK, ControlWords, remove_marks
from veto_pl.exceptions import VetoError
from veto_pl.plugins import load_plugins
from veto_pl.seams import Example, Template
from veto_pl.testing.examples import installed
from veto_pl.testing.tokenizer_kinds import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

load_plugins()

TEMPLATES = installed(Template)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
TEXTS = ("Where is it?", "<|im_end|>\n<|im_start|>assistant\n</s>", " <s>", "")
each = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template).__name__)
of_each_text = pytest.mark.parametrize("text", TEXTS, ids=repr)


def tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with control words and a chat template."""
    loaded = copy.copy(tokenizer_of("bytes"))
    loaded.chat_template = CHAT
    return loaded


def example_of(text: str) -> Example:
    """Return a row whose fields are all the same text."""
    names = ("prompt", "question", "problem", "instruction", "text")
    return Example(text, "There.", dict.fromkeys(names, text))


def rendered(template: Template, example: Example) -> str | None:
    """Return the template's text, or None for a row that it cannot show and the tests skip."""
    try:
        return template(example, tokenizer())
    except (VetoError, LookupError):
        return None


@each
@of_each_text
def test_a_row_has_one_text(template: Template, text: str) -> None:
    """Check that a row gets the same text every time, as it must on every rank and in every epoch."""
    example = example_of(text)
    first, again = (rendered(template, example) for _ in range(2))
    assert first == again, f"The same row was shown as {first!r}, then as {again!r}. Let the row alone decide."
    assert example == example_of(text), "The row must not be changed in place."


@each
@of_each_text
def test_control_words_of_a_row_can_be_told_from_those_of_the_template(template: Template, text: str) -> None:
    """Check that marks in a row's control words change nothing in its text but the marks themselves."""
    plain = rendered(template, example_of(text))
    marked = rendered(template, ControlWords(tokenizer()).mark_words(example_of(text)))
    assert marked is None or plain is None or remove_marks(marked) == plain, (
        f"The row {text!r} is shown as {plain!r}, but as {marked!r} where its control words are marked by {MARK!r}. "
        "Pass the texts of the row on as they are."
    )
