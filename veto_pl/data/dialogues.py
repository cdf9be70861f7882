"""Dialogues as chat templates and plain formats show them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veto_pl.data.control_words import ControlWords
from veto_pl.data.renderings import Renderer
from veto_pl.data.tokenising import AS_TEXT, read_all, tokenise_continuations
from veto_pl.data.tool_calls import message_of, tagged_text
from veto_pl.data.turns import common, end_of_turn
from veto_pl.seams import Continuation, Conversation, Dialogue, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatDialogue(Dialogue):
    """A dialogue by a chat template.

    What stands between two turns is what the ids of the rendering with the reply have more than those without it. So it
    is what the template would write there, and the agent's own tokens stay as it wrote them. Where the template shows
    what came before otherwise than the agent has read and written it, as those do that take out earlier thoughts, the
    agent reads all of it anew.

    Control words in what is said are text: no reply can end a turn or pass for another role.

    Args:
        conversation: the row's messages in front of the agent's first turn, and the tools.
        renderer: the chat template.
        ends: the ids that end a turn.
    """

    def __init__(self, conversation: Conversation, renderer: Renderer, ends: Collection[int]) -> None:
        super().__init__(conversation.opening)
        self.tools, self.renderer, self.ends = conversation.tools, renderer, ends
        self.tokenizer = renderer.tokenizer
        self.words = ControlWords(self.tokenizer)
        self._asked: _Asked | None = None

    def read(self, messages: Sequence[Message]) -> list[int]:
        return [*self._asking(messages).ids]

    def between(self, said: Sequence[Message], reply: Sequence[Message], end: int | None) -> Continuation:
        before = self._asking(said[:-1])
        through = self.renderer.text(self._marked(said), tools=self.tools)
        written, whole = self._ids(through), self._asking([*said, *reply]).ids
        stop = end_of_turn(written, common(before.ids, written), self.ends, self.tokenizer)
        kept = through.startswith(before.text) and whole[:stop] == written[:stop]
        if not kept or end not in (None, written[stop - 1]):
            return Continuation(tuple(whole), anew=True)
        return Continuation(tuple(whole[stop - (end is None) :]))

    def heard(self, read: Sequence[int], written: Sequence[int]) -> Message:
        return message_of(written, read, self.tools, self.tokenizer)

    def _asking(self, messages: Sequence[Message]) -> _Asked:
        """Return the rendering that asks the agent to write; the last one is kept, since its turn comes back to it."""
        known = self._asked
        if known is None or known.messages != tuple(messages):
            text = self.renderer.asking(Conversation(self._marked(messages), tools=self.tools))
            known = self._asked = _Asked(tuple(messages), text, self._ids(text))
        return known

    def _marked(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(map(self.words.marked, messages))

    def _ids(self, text: str) -> list[int]:
        return read_all([text], self.tokenizer, self.words)[0]


@dataclass(frozen=True)
class _Asked:
    """A rendering that asks the agent to write.

    Args:
        messages: what was said.
        text: the rendering.
        ids: its tokens.
    """

    messages: tuple[Message, ...]
    text: str
    ids: list[int]


class PlainDialogue(Dialogue):
    """A dialogue without a chat template: replies are put behind the agent's turns by a format.

    Args:
        prompt: the text of the row's prompt.
        read: from a prompt's text to its ids.
        shown: from a message to its text.
        tokenizer: of the models.
    """

    def __init__(
        self,
        prompt: str,
        read: Callable[[str], list[int]],
        shown: Callable[[Message], str],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__(({"role": "user", "content": prompt},))
        self.prompt_ids, self.shown, self.tokenizer = read, shown, tokenizer

    def read(self, messages: Sequence[Message]) -> list[int]:
        first, *others = messages
        ids = self.prompt_ids(str(first["content"]))
        for message in others:
            ids += self._turn(tagged_text(message)) if message["role"] == "assistant" else self._ids([message])
        return ids

    def between(self, said: Sequence[Message], reply: Sequence[Message], end: int | None) -> Continuation:
        return Continuation(tuple(self._ids(reply)))

    def heard(self, read: Sequence[int], written: Sequence[int]) -> Message:
        return message_of(written, read, (), self.tokenizer)

    def _turn(self, said: str) -> list[int]:
        """Return the ids of a turn of the agent's role, as of an expert, which ends with EOS."""
        end = self.tokenizer.eos_token_id
        return [*self._text_ids(said), *([] if end is None else [end])]

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        return self._text_ids("".join(map(self.shown, messages)))

    def _text_ids(self, text: str) -> list[int]:
        return tokenise_continuations([text], self.tokenizer, **AS_TEXT)[0] if text else []
