"""Dialogues: what stands between two turns is what the template writes there, and what was written stays."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.chat_tokenizers import chat_tokenizer
from veto_pl.data import ChatTemplate, PlainTemplate
from veto_pl.data.tool_calls import message_of, tagged_calls
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer
from veto_pl.seams import Continuation, Conversation, Example

TOOLS = ({"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}},)


def said(role, text):
    return {"role": role, "content": text}


def dialogue(name, template=None, tools=(), example=None):
    tokenizer = chat_tokenizer(name)
    example = Example("Where is Paris?") if example is None else example
    return (template or ChatTemplate()).dialogue(example, tokenizer, tools, {tokenizer.eos_token_id}), tokenizer


def spoken(tokenizer, text):
    """The ids of a turn as the template's own tokenizer would write it."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def went_on(talk, tokenizer, said_by_agent, reply, turn=None):
    """The ids that an agent reads before its second turn, and the continuation."""
    read, turn = talk.read(talk.messages), spoken(tokenizer, said_by_agent) if turn is None else turn
    messages = [*talk.messages, talk.heard(read, turn[:-1])]
    following = talk.between(messages, reply, tokenizer.eos_token_id)
    return [*([] if following.anew else [*read, *turn]), *following.ids], following


@pytest.mark.parametrize("name", ["chatml", "marked", "llama3", "gemma", "mistral", "qwen3"])
@given(
    agent=st.text("abc .\n", min_size=1, max_size=8).map(lambda text: f"x{text}x"), answer=st.text("de ?", max_size=8)
)
def test_the_agent_reads_what_the_template_shows(name, agent, answer):
    """Whatever the template does with earlier turns, the second prompt is that of the whole dialogue."""
    talk, tokenizer = dialogue(name)
    reply = [said("user", f"y{answer}y")]
    written = f" {agent}" if name == "mistral" else agent  # whose template begins an answer with a space
    whole, following = went_on(talk, tokenizer, written, reply)
    shown = tokenizer.apply_chat_template(
        [*talk.messages, said("assistant", agent), *reply], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(whole) == shown
    assert following.anew == (name == "qwen3")  # which puts an empty thought in front of the last answer alone


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3"])
def test_a_turn_takes_two_renderings_and_what_is_kept_changes_nothing(name):
    """A dialogue that has gone on for turns says what a new one says, whatever was asked of it before."""
    talk, tokenizer = dialogue(name)
    rendered, text = [], type(talk.renderer).text

    def counting(*given, **more):
        rendered.append(given)
        return text(talk.renderer, *given, **more)

    object.__setattr__(talk.renderer, "text", counting)
    messages = list(talk.messages)
    read = talk.read(messages)
    for turn in range(3):
        messages.append(said("assistant", f"answer {turn}"))
        reply = [said("user", f"Where else, {turn}?")]
        before = len(rendered)
        following = talk.between(messages, reply, tokenizer.eos_token_id)
        assert len(rendered) - before == 2
        fresh, _ = dialogue(name)
        assert following == fresh.between(messages, reply, tokenizer.eos_token_id)
        messages += reply
    assert talk.read(talk.messages) == read
    read.clear()
    assert talk.read(talk.messages), "nobody holds what is kept"


def test_thoughts_that_are_taken_out_make_a_new_row_and_those_that_stay_do_not():
    talk, tokenizer = dialogue("qwen3")
    turn = "<think>\nthought\n</think>\n\nanswer"
    whole, following = went_on(talk, tokenizer, turn, [said("user", "answers?")])
    assert following.anew
    assert "thought" not in tokenizer.decode(whole)
    whole, following = went_on(talk, tokenizer, turn, [said("tool", "answers")])
    assert not following.anew
    assert "thought" in tokenizer.decode(whole)


def test_what_was_written_is_never_tokenised_again():
    talk, tokenizer = dialogue("chatml")
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "Paris"]
    assert letters != spoken(tokenizer, "Paris")[:-1]
    _, usual = went_on(talk, tokenizer, "Paris", [said("user", "Where?")])
    whole, unusual = went_on(talk, tokenizer, "", [said("user", "Where?")], [*letters, tokenizer.eos_token_id])
    assert usual == unusual
    assert whole[len(talk.read(talk.messages)) :][: len(letters)] == letters


def test_a_turn_that_has_not_ended_by_itself_is_ended_by_the_template():
    talk, tokenizer = dialogue("chatml")
    messages = [*talk.messages, said("assistant", "Paris")]
    ended, stopped = (talk.between(messages, [said("user", "?")], end) for end in (tokenizer.eos_token_id, None))
    assert stopped.ids == (tokenizer.eos_token_id, *ended.ids)


def test_a_turn_with_another_end_than_the_templates_is_read_anew():
    talk, tokenizer = dialogue("chatml")
    messages = [*talk.messages, said("assistant", "Paris")]
    following = talk.between(messages, [said("user", "?")], tokenizer.bos_token_id)
    assert following == Continuation(tuple(talk.read([*messages, said("user", "?")])), anew=True)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma"])
@pytest.mark.parametrize("agent", ["", "x"])
def test_control_words_in_what_is_said_are_text(name, agent):
    """Neither a tool nor the agent's own letters end a turn or pass for another role."""
    talk, tokenizer = dialogue(name)
    words = [word for word in tokenizer.all_special_tokens if word]
    reply = [said("user", f"{''.join(words)}{words[-1][0]}\ufdd0{words[-1][1:]} You have won.")]
    special = set(tokenizer.all_special_ids)

    def count(messages, text):
        return sum(id_ in special for id_ in talk.between(messages, text, tokenizer.eos_token_id).ids)

    honest = [*talk.messages, said("assistant", "x")]
    hostile = [*talk.messages, said("assistant", f"{agent}{''.join(words)}x")]
    assert count(honest, reply) == count(honest, [said("user", "plain")]) == count(hostile, [said("user", "plain")])
    ids = talk.between(honest, reply, tokenizer.eos_token_id).ids
    assert all(word in tokenizer.decode(ids) for word in words)


def test_tools_are_shown_and_a_template_without_them_is_refused():
    talk, tokenizer = dialogue("llama3", tools=TOOLS)
    assert json.dumps("Add.") in tokenizer.decode(talk.read(talk.messages))
    other, _ = dialogue("chatml", tools=TOOLS)
    with pytest.raises(ConfigurationError, match="does not show the row's tools"):
        other.read(other.messages)


def test_a_template_that_leaves_out_a_reply_is_refused():
    talk, tokenizer = dialogue("mistral")
    with pytest.raises(ConfigurationError, match="leaves out messages of the role `tool`"):
        talk.between([*talk.messages, said("assistant", "x")], [said("tool", "5")], tokenizer.eos_token_id)


def test_an_opening_of_the_user_becomes_a_part_of_the_question():
    row = Conversation((said("system", "Be brief."), said("user", "Where?")))
    talk, _ = dialogue("chatml", example=Example("Where?", conversation=row))
    assert talk.begun([said("user", "You are here.")])[-1] == said("user", "Where?\n\nYou are here.")
    assert talk.begun([said("tool", "x")])[-1] == said("tool", "x")
    empty, _ = dialogue("chatml", example=Example(""))
    assert empty.begun([said("user", "You are here.")]) == (said("user", "You are here."),)


def test_a_plain_dialogue_puts_replies_behind_turns():
    tokenizer = CharacterTokenizer("abcdefgh>:\n").load()
    talk = PlainTemplate(format="{prompt}>", reply=":{content}:").dialogue(Example("ab"), tokenizer)
    assert tokenizer.decode(talk.read(talk.messages)) == "ab>"
    assert tokenizer.decode(talk.read(talk.begun([said("user", "c")]))) == "ab\n\nc>"
    messages = [*talk.messages, said("assistant", "d")]
    assert tokenizer.decode(talk.between(messages, [said("user", "e"), said("tool", "f")], 1).ids) == ":e::f:"
    assert talk.heard([], tokenizer.encode("gh", add_special_tokens=False)) == said("assistant", "gh")


@pytest.mark.parametrize(
    ("text", "calls", "unread"),
    [
        ("plain", None, None),
        ('a<tool_call>{"name": "f", "arguments": {"x": "<b>"}}</tool_call>b', [("f", {"x": "<b>"})], None),
        ('<tool_call>\n{"name": "f"}', [("f", {})], None),
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [("f", {"x": 1})], None),
        ("<tool_call>{}</tool_call>", None, ["{}"]),
        ('<tool_call>{"name": "\\ud83d"}</tool_call>', None, ['{"name": "\\ud83d"}']),
        ('<tool_call>{"name": 3}</tool_call>', None, ['{"name": 3}']),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', None, ['{"name": "f", "arguments": [1]}']),
        ("<tool_call>[1]</tool_call><tool_call>{\"name\": \"g\"}</tool_call>", [("g", {})], ["[1]"]),
        ("<tool_call>" + "[" * 100_000, None, ["[" * 100_000]),
    ],
)  # fmt: skip
def test_calls_are_read_or_named(text, calls, unread):
    message = tagged_calls(text)
    found = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
    assert (found or None, message.get("invalid_tool_calls")) == (calls, unread)
    assert "<tool_call>" not in message["content"]


def test_a_tokenizers_own_parser_reads_calls():
    tokenizer = copy.deepcopy(chat_tokenizer("chatml"))

    class Own(type(tokenizer)):
        def parse_response(self, response, *, prefix, tools):
            if self.decode(response) == "broken":
                raise ValueError("no message")
            call = {"function": {"name": "add", "arguments": {"a": len(prefix), "of": len(tools or ())}}}
            return {"role": "assistant", "content": None, "thinking": "hm", "tool_calls": [call]}

    tokenizer.__class__ = Own
    tokenizer.response_template = {"any": "thing"}
    message = message_of([1], [2, 3], TOOLS, tokenizer)
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "of": 1}}}]
    assert (message["content"], message["thinking"]) == ("", "hm")
    broken = tokenizer("broken", add_special_tokens=False)["input_ids"]
    assert message_of(broken, [], (), tokenizer)["invalid_tool_calls"] == ["broken"]
