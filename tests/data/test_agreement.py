"""Rows of tasks that are conversations must say the same as their prompts and references."""

from dataclasses import dataclass

import pytest

from tests.data.chat_tokenizers import chat_tokenizer
from veto_pl.data import ChatTemplate, ExampleStream, PromptDataModule
from veto_pl.exceptions import DataError
from veto_pl.seams import Conversation, Example, Task


def said(*messages):
    """A conversation whose last answer is a reference."""
    places = [place for place, (role, _) in enumerate(messages) if role == "assistant"]
    told = tuple({"role": role, "content": content} for role, content in messages)
    return Conversation(told, tuple(places[-1:]))


ASKED = said(("user", "One?"), ("assistant", "1"))
GOOD = Example("One?", "1", conversation=ASKED)
BAD = {
    "a prompt": (Example("Two?", "1", conversation=ASKED), "prompt str 'Two[?]', but .* 'One[?]' in the last message"),
    "a reference": (Example("One?", "2", conversation=ASKED), "completion str '2', but .* '1' in the last reference"),
    "no reference": (Example("One?", None, conversation=ASKED), "completion str '', but"),
    "nothing of the user": (Example("Two?", conversation=said(("system", "Go."))), "prompt str 'Two[?]'"),
}


@dataclass(frozen=True)
class Rows(Task):
    """Has one row, in a list or in a stream."""

    example: Example
    streams: bool

    def load(self, split):
        rows = [self.example]
        return ExampleStream(lambda: iter(rows)) if self.streams and split == "train" else rows

    def reward(self, example, completion):
        return 0.0


def first_batch(example, *, streams):
    data = PromptDataModule(Rows(example, streams), template=ChatTemplate(), validation_limit=0)
    data.connect(chat_tokenizer("chatml"))
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_task_that_contradicts_its_conversation_is_refused(name, streams):
    """It would be trained on one of two texts, and nobody would be told on which."""
    example, message = BAD[name]
    with pytest.raises(DataError, match=message):
        first_batch(example, streams=streams)


def test_a_task_that_agrees_with_its_conversation_is_read():
    assert first_batch(GOOD, streams=False).examples[0].prompt == "One?"
