"""Tokens of answers as the page shows them."""

import pytest

from veto_pl.compare.answer_cards import Answers
from veto_pl.compare.results import Answer


@pytest.mark.parametrize(
    ("texts", "turns", "shown"),
    [
        (("",), (), ["∎"]),
        (("a", "", "b", ""), (), ["a", "", "b", "∎"]),
        (("a", "", "b", ""), (1, 1, 2, 2), ["a", "∎", "b", "∎"]),
        (("a", "b"), (), ["a", "b"]),
        ((), (), []),
    ],
)
def test_the_end_of_a_text_can_be_seen(texts, turns, shown, make):
    """An answer that ends at once would be an empty line, and the colour of an end is never seen. Others stay."""
    answer = Answer("p", None, 1.0, texts, (1.0,) * len(texts), (1.0,) * len(texts), turns=turns)
    answers = Answers(make(("A",), (0,), steps=2, prompts=1, answer=lambda *_, **__: answer))
    assert [token.text for token in answers.tokens(answer)] == shown
