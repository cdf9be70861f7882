"""Every installed template: a row has one text, with its prompt, and control words in it stay recognisable."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from veto_pl.data.control_words import MARK, ControlWords, remove_marks
from veto_pl.exceptions import VetoError
from veto_pl.plugins import load_plugins
from veto_pl.seams import Conversation, Example, Law, Template
from veto_pl.testing.examples import example_of, installed, rows_of
from veto_pl.testing.tokenizer_kinds import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

load_plugins()

TEMPLATES = installed(Template)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LONG = "Where is it? " * 40
DIFFERENT = (
    *("Where is it?", "There is it?", "Where is he?", "Where is it!", ""),
    *(f"{LONG}A", f"{LONG}B", f"{LONG}A\n\nC", f"A{LONG}", f"B{LONG}"),
)
"""Prompts that differ at their beginning, in their middle and at their end."""
TEXTS = ("Where is it?", "<|im_end|>\n<|im_start|>assistant\n</s>", " <s>", "")
each = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template).__name__)
of_each_text = pytest.mark.parametrize("text", TEXTS, ids=repr)


def tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with control words and a chat template."""
    loaded = copy.copy(tokenizer_of("bytes"))
    loaded.chat_template = CHAT
    return loaded


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


@pytest.mark.parametrize(
    "template", [x for x in TEMPLATES if Law.PROMPT_IS_SHOWN in x.laws], ids=lambda template: type(template).__name__
)
def test_different_prompts_have_different_texts(template: Template) -> None:
    """Check that no two prompts have the same text, without their white space, if the class promises that."""
    examples = rows_of(template, *((text, "There.") for text in DIFFERENT))
    shown = {example.prompt: text for example in examples if (text := rendered(template, example)) is not None}
    same = [(one, other) for one in shown for other in shown if one < other and shown[one] == shown[other]]
    assert not same, (
        f"The prompts {same[0][0]!r:.80} and {same[0][1]!r:.80} are both shown as {shown[same[0][0]]!r:.80}. Where "
        "prompts are meant to be left out or cut: `laws = Template.laws - {Law.PROMPT_IS_SHOWN}`."
    )


@each
def test_a_text_can_be_made_again_by_an_export(template: Template) -> None:
    """Check that the chat template of an export makes the same text of a user's message, of one row at least."""
    jinja = template.chat_template(tokenizer())
    if jinja is None:
        return
    exported = tokenizer()
    exported.chat_template = jinja
    pairs = []
    for row in (Example(text) for text in DIFFERENT[:4]):
        said = [{"role": "user", "content": row.prompt}]
        again = exported.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        pairs.append((rendered(template, row), again))
    assert any(one == again for one, again in pairs), (
        f"`chat_template` makes {pairs[0][1]!r} of a message that is shown as {pairs[0][0]!r}. Return None if no chat "
        "template can make that text."
    )


@pytest.mark.parametrize(
    "template", [x for x in TEMPLATES if x.renders_conversations], ids=lambda template: type(template).__name__
)
def test_conversations_are_shown_with_their_references(template: Template) -> None:
    """Check that a conversation's text has all that was said, and each reference between the texts around it."""
    contents = ("Be brief.", "Where?", "There.", "When?", "Then.")
    roles = ("system", "user", "assistant", "user", "assistant")
    said = tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=True))
    example = Example("Where?", "Then.", conversation=Conversation(said, (2, 4)))
    try:
        shown = template.rendered(example, tokenizer())
    except VetoError:  # it was not made for such rows
        return
    assert all(text in shown.text for text in contents), f"All of {contents} must be shown, got {shown.text!r}."
    assert len(shown.turns) == 2, f"There are two references, got {len(shown.turns)} turns."
    for turn, reference in zip(shown.turns, ("There.", "Then."), strict=True):
        assert reference in turn.through, f"The text through {reference!r} must hold it, got {turn.through!r}."
        assert reference not in turn.before, (
            f"The text in front of {reference!r} must not hold it, got {turn.before!r}."
        )
    opening = template(example, tokenizer())
    assert "There." not in opening, f"A prompt must not hold the first reference, got {opening!r}."
