"""Conversations of several turns, from any data set of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from veto_pl.data.example_files import split_files
from veto_pl.data.image_fields import ImagePlace, placed
from veto_pl.data.jsonl import check_fields
from veto_pl.data.messages import answers, read_answer, read_messages, read_tools
from veto_pl.data.tasks.rows import RowTask
from veto_pl.exceptions import DataError
from veto_pl.seams import Conversation, Example, Message, Mistake, Picture, Setup, text_of

Turns = Literal["each", "last", "together"]
Seen = tuple[Message, tuple[Picture, ...]]


@dataclass(frozen=True, kw_only=True)
class Chat(RowTask):
    """Conversations, rendered by a `ChatTemplate`; read from the same files as `Rows` are.

    A message has `role` and `content`, or `from` and `value` as in ShareGPT, and perhaps `tool_calls`. An answer of the
    assistant whose `weight` is 0 is read and not trained on. A conversation that ends with another's message has one
    more example, without a reference, for the student to answer; rows to validate and test on are never `together`.

    Args:
        messages: the field that holds the messages.
        completion: a field that holds what follows on the messages, as more messages or the text of one answer; only
            answers in it are then references. None where `messages` holds everything.
        tools: the field with the JSON schemas of the tools, for rows that have some, or None.
        turns: `each` makes an example of every answer: all before it is the prompt. `last` makes one of the last.
            `together` makes one of the whole conversation, in which all answers are trained on, and none is asked for
            anew: for references only.
        image_word: stands for an image in the texts of rows with `images`; None for none, so that it is a text like any
            other. Where no text of a row has it, the images stand in front of the user's first message.

    Raises:
        ConfigurationError: a number is negative, or a path or stop string empty.
        DataError: for a file that cannot be read, or a bad row, named as `file:row: field`.
    """

    messages: str = "messages"
    completion: str | None = None
    tools: str | None = "tools"
    turns: Turns = "each"
    image_word: str | None = "<image>"

    @classmethod
    def examples(cls, folder: Path) -> tuple[Chat, ...]:
        roles = ("user", "assistant") * 2
        rows = [
            {"messages": [{"role": role, "content": f"{number}, {place}"} for place, role in enumerate(roles)]}
            for number in range(6)
        ]
        paths = split_files(folder, rows)
        return cls(**paths), cls(**paths, turns="last"), cls(**paths, turns="together", streaming=True)

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield that the template shows no conversations, or that a student would answer only the first turn."""
        if not setup.template.renders_conversations:
            name = type(setup.template).__name__
            yield Mistake("data.template", f"`{name}`, which shows single prompts", "one that renders conversations",
                          "Set it to `ChatTemplate`.")  # fmt: skip
        if self.turns == "together" and setup.rollouts_for:
            yield Mistake(f"{path}.init_args.turns", f"`together` with a rollout `{setup.rollouts_for}`, which would "
                          "write the first answer only", "`each`", "Set it: every answer is then a row.")  # fmt: skip

    def examples_of(self, row: Any, where: str, *, split: str) -> Iterator[Example]:
        """Yield the examples of a conversation."""
        check_fields(row, where)
        messages = read_messages(row, self.messages, where)
        first = 0
        if self.completion is not None:
            first = len(messages)
            messages += read_answer(row, self.completion, where)
        places = list(answers(messages, first))
        if places and places[0] == 0:
            raise DataError(f"{where}: field `{self.messages}` begins with an answer, expected a message before it.")
        given = self.pictures_of(row, where)
        place = ImagePlace(where, self.image_folder)
        seen = placed(messages, given, place, self.messages, self.image_word)
        yield from self._examples(row, seen, places, where, together=self.turns == "together" and split == "train")

    def _examples(
        self, row: dict[str, Any], seen: list[Seen], places: list[int], where: str, *, together: bool
    ) -> Iterator[Example]:
        messages = [message for message, _ in seen]
        own = (self.messages, self.completion, self.images)
        fields = {name: value for name, value in row.items() if name not in own}
        tools = () if self.tools is None else read_tools(row, self.tools, where)
        ends_open = messages[-1]["role"] != "assistant"
        if together and places:
            parts = [tuple(places)]
        elif self.turns == "last":
            parts = [() if ends_open else tuple(places[-1:])]
        else:
            parts = [(place,) for place in places] + ([()] if ends_open else [])
        for turns in parts:
            heard = turns[-1] + 1 if turns else len(messages)
            images = tuple(one for _, pictures in seen[:heard] for one in pictures)
            yield _example(Conversation(tuple(messages[:heard]), turns, tools), fields, images)


def _example(said: Conversation, fields: dict[str, Any], images: tuple[Picture, ...]) -> Example:
    question = said.question
    prompt = text_of(said.opening[-1 if question is None else question])
    completion = text_of(said.messages[said.turns[-1]]) if said.turns else None
    return Example(prompt, completion, fields, conversation=said, images=images)
