from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.data import ChatTemplate, PlainTemplate, TemplateMixture
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer
from veto_pl.models.tokenizers import with_chat_template
from veto_pl.seams import Example, Template

EXAMPLE = Example(
    "stressed", "desserts", {"question": "Spell it.", "metadata": {"word": "stressed"}, "tags": ["x", "y"]}
)
FIRST, SECOND = PlainTemplate(format="first"), PlainTemplate(format="second")


@given(st.text())
def test_the_default_is_the_prompt_whatever_it_contains(prompt):
    assert PlainTemplate()(Example(prompt), None) == prompt


def test_nested_fields_and_doubled_braces(tokenizer):
    template = PlainTemplate(format="{metadata[word]}>{tags[1]} \\boxed{{}}")
    assert template(EXAMPLE, tokenizer) == "stressed>y \\boxed{}"


@given(st.lists(st.one_of(st.text(max_size=3), st.integers(0, 99)), max_size=6))
def test_the_entries_of_a_list_are_joined_on_demand(entries):
    row = Example("p", row={"metadata": {"letters": entries}})
    assert PlainTemplate(format="{metadata[letters]!j}>")(row, None) == "".join(map(str, entries)) + ">"
    assert PlainTemplate(format="{metadata[letters]}>")(row, None) == f"{entries}>"


def test_what_has_no_entries_is_not_joined(tokenizer):
    with pytest.raises(ConfigurationError, match="number"):
        PlainTemplate(format="{number!j}")(Example("p", row={"number": 3}), tokenizer)


def test_the_prompt_wins_over_a_field_of_that_name(tokenizer):
    example = Example("the prompt", row={"prompt": "a field"})
    assert PlainTemplate()(example, tokenizer) == "the prompt"


@pytest.mark.parametrize("name", ["answer", "metadata[colour]", "tags[9]", "metadata.word", "prompt[word]"])
def test_an_unknown_field_is_named_with_the_available_ones(tokenizer, name):
    with pytest.raises(ConfigurationError) as caught:
        PlainTemplate(format="{prompt} {" + name + "}")(EXAMPLE, tokenizer)
    message = str(caught.value)
    assert f"the field `{name}`" in message
    assert "Available: `question`, `metadata`, `tags`, `prompt`." in message


@pytest.mark.parametrize("text", ["{", "{prompt", "}", "{}", "{0}", "{prompt} {0[word]}"])
@pytest.mark.parametrize(
    ("template", "setting"), [(PlainTemplate, "PlainTemplate.format"), (ChatTemplate, "ChatTemplate.user")]
)
def test_a_format_that_no_row_fills_is_refused_early(template, setting, text):
    with pytest.raises(ConfigurationError, match=f"`{setting}`"):
        template(**{setting.split(".")[1]: text})


def test_a_format_specification_that_does_not_fit_is_a_configuration_error(tokenizer):
    with pytest.raises(ConfigurationError, match=r"prompt:d"):
        PlainTemplate(format="{prompt:d}")(EXAMPLE, tokenizer)


def test_bos_is_prepended_and_becomes_one_token(tokenizer):
    text = PlainTemplate(add_bos=True)(Example("ab"), tokenizer)
    assert text == "<bos>ab"
    assert tokenizer(text, add_special_tokens=False)["input_ids"][0] == tokenizer.bos_token_id


def test_a_tokenizer_without_bos_is_refused(make_tokenizer):
    with pytest.raises(ConfigurationError, match=r"PlainTemplate.add_bos"):
        PlainTemplate(add_bos=True)(EXAMPLE, make_tokenizer(bos_token=None))


def test_the_chat_template_is_left_open_for_the_assistant(chat_tokenizer):
    template = ChatTemplate(system="Be {brief}.", user="Q: {metadata[word]}", arguments={"mark": "!"})
    text = template(EXAMPLE, chat_tokenizer)
    assert text == "<system>Be {brief}.</><user>Q: stressed</><assistant>!"


def test_without_a_system_message_there_is_none(chat_tokenizer):
    assert ChatTemplate()(Example("日本 🎉"), chat_tokenizer) == "<user>日本 🎉</><assistant>"


def test_a_tokenizer_without_chat_template_is_refused_with_the_remedy(tokenizer):
    with pytest.raises(ConfigurationError, match=r"Use `PlainTemplate`"):
        ChatTemplate()(EXAMPLE, tokenizer)


def test_an_own_template_overrides_and_substitutes_the_tokenizers(tokenizer, chat_tokenizer):
    own = ChatTemplate(template="[{{ messages[0].content }}]")
    assert own(Example("hi"), chat_tokenizer) == "[hi]"
    chat_tokenizer.chat_template = None
    assert own(Example("hi"), tokenizer) == "[hi]"


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{% if %}"])
def test_a_template_that_refuses_is_a_configuration_error(tokenizer, template):
    with pytest.raises(ConfigurationError, match="refused the conversation"):
        ChatTemplate(template=template)(EXAMPLE, tokenizer)


def test_reserved_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="must not set tokenize"):
        ChatTemplate(arguments={"tokenize": True})


def test_templates_are_values():
    one, same, other = (ChatTemplate(arguments={"enable_thinking": flag}) for flag in (False, False, True))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_mixture_of_templates_shows_each_its_share_and_a_row_always_alike(tokenizer, fraction):
    mixed = TemplateMixture(first=FIRST, second=SECOND, fraction=fraction)
    examples = [Example(str(number), row={"number": number, "other": object()}) for number in range(2000)]
    shown = [mixed(example, tokenizer) for example in examples]
    assert shown.count("first") / len(shown) == pytest.approx(fraction, abs=0.04)
    hinted = [replace(example, prompt=f"another {example.prompt}") for example in examples]
    assert [mixed(example, tokenizer) for example in hinted] == shown


def test_a_mixture_of_templates_tells_rows_without_fields_by_their_prompt(tokenizer):
    mixed = TemplateMixture(first=FIRST, second=SECOND)
    assert {mixed(Example(str(number)), tokenizer) for number in range(20)} == {"first", "second"}


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_share_outside_of_its_range_is_refused(fraction):
    with pytest.raises(ConfigurationError, match=r"TemplateMixture.fraction.* must lie in \[0, 1\]"):
        TemplateMixture(first=FIRST, second=SECOND, fraction=fraction)


SPACED = "\n  {% if true %}[{% endif %}\n" + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
ARGUMENTS = "{{ mark if mark is defined else 'unset' }}{{ more if more is defined else 'unset' }}"
TOKENIZER = CharacterTokenizer("ab").load()
AROUND = st.text(max_size=8).map(lambda text: text.replace("{", "{{").replace("}", "}}"))
FORMATS = st.builds("{}{{prompt}}{}".format, AROUND, AROUND)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
TEMPLATES = st.builds(PlainTemplate, format=FORMATS) | st.builds(
    ChatTemplate,
    system=st.none() | st.text(max_size=8),
    user=FORMATS,
    template=st.sampled_from([SPACED + ARGUMENTS, ARGUMENTS + SPACED]),
    arguments=st.fixed_dictionaries({}, optional={"mark": JSON, "more": JSON}),
)


@given(template=TEMPLATES, prompt=st.text(max_size=12))
def test_the_chat_template_makes_of_a_message_what_the_template_makes_of_a_prompt(template, prompt):
    exported = with_chat_template(TOKENIZER, template.chat_template(TOKENIZER))
    rendered = exported.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                            add_generation_prompt=True)  # fmt: skip
    assert rendered == template(Example(prompt), TOKENIZER)


def test_the_chat_template_begins_with_bos_where_the_template_does(tokenizer):
    exported = with_chat_template(tokenizer, PlainTemplate(format="{prompt}>", add_bos=True).chat_template(tokenizer))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert exported.apply_chat_template(turns, tokenize=False) == "<bos>a>b<eos>c>"
    with pytest.raises(Exception, match="messages of the user alone, got the role system"):
        exported.apply_chat_template([{"role": "system", "content": "a"}], tokenize=False)


def test_a_system_message_of_the_conversation_stays_and_no_other_is_put_in_front(chat_tokenizer):
    template = ChatTemplate(system="s", arguments={"mark": "!"})
    exported = with_chat_template(chat_tokenizer, template.chat_template(chat_tokenizer))
    given = [{"role": "system", "content": "t"}, {"role": "user", "content": "a"}]
    rendered = exported.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    assert rendered == "<system>t</><user>a</><assistant>!"
    assert exported.apply_chat_template(given, tokenize=False, add_generation_prompt=True, mark="?").endswith("?")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PlainTemplate(format="{question}: {prompt}"), None),
        (PlainTemplate(format="{prompt!r}"), None),
        (ChatTemplate(user="{question}", template=SPACED), None),
        (ChatTemplate(), None),
        (TemplateMixture(first=PlainTemplate(format="{x}"), second=PlainTemplate(format="{prompt}!")), "second"),
        (TemplateMixture(first=PlainTemplate(format="{x}"), second=PlainTemplate(), fraction=1.0), None),
        (TemplateMixture(first=PlainTemplate(format="{prompt}!"), second=PlainTemplate(), fraction=0.0), "second"),
        (TemplateMixture(first=PlainTemplate(format="{prompt}!"), second=PlainTemplate(), fraction=0.6), "first"),
    ],
)
def test_a_prompt_that_is_more_than_a_message_has_no_chat_template(tokenizer, template, expected):
    told = template.chat_template(tokenizer)
    assert told == (None if expected is None else getattr(template, expected).chat_template(tokenizer))


def test_the_tokenizers_own_chat_template_is_exported_as_it_is(chat_tokenizer):
    assert with_chat_template(chat_tokenizer, ChatTemplate().chat_template(chat_tokenizer)) is chat_tokenizer


def test_a_template_that_says_nothing_has_no_chat_template(tokenizer):
    class Own(Template):
        def __call__(self, example, tokenizer):
            return example.prompt

    assert Own().chat_template(tokenizer) is None
