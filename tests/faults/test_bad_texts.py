"""Templates, tokenizers and tasks that cannot make the text or the tokens that they should."""

import json
import os

import pytest

from veto_pl.data import ChatTemplate, Collator, JsonLines, PlainTemplate, PromptDataModule, ReasoningGym
from veto_pl.models import CharacterTokenizer, Pretrained, PretrainedTokenizer
from veto_pl.models.assemble import load_models, load_tokenizer
from veto_pl.models.vocabulary import compare_ends
from veto_pl.seams import Example
from veto_pl.testing.tiny import ALPHABET, tiny_source

from .bad_inputs import JUNK, MARKER, Case, each, hostile_module, refuse

ROW = Example("ab", "ba", {"m": {"w": 1}, "l": [1], "n": None, "f": 1.5, "s": "\ud800"})


def nothing(folder):
    """Nothing has to be prepared."""


def tokenizer(**special):
    made = CharacterTokenizer(ALPHABET).load()
    for name, value in special.items():
        setattr(made, name, value)
    return made


FORMATS = [
    "{", "{}", "{0}", "{nope}", "{m[x]}", "{l[9]}", "{n[a]}", "{prompt:d}", "{prompt:>99999999999}", "{prompt!z}",
    "{s}", "{m[w]:{nope}}", "{prompt.nope}", "{m.__init__.__globals__}", "{nope}" * 5000,
]  # fmt: skip
PLAIN = [
    Case(
        f"a format: {text[:30]} ({len(text)})",
        nothing,
        lambda _, text=text: PlainTemplate(format=text)(ROW, tokenizer()),
        ("`PlainTemplate.format`",),
    )
    for text in FORMATS
]
PLAIN += [
    Case(
        f"a user message: {text}",
        nothing,
        lambda _, text=text: ChatTemplate(user=text, template="{{ messages }}")(ROW, tokenizer()),
        ("`ChatTemplate.user`",),
    )
    for text in ("{nope}", "{", "{0}", "{prompt:d}", "{s}")
]
PLAIN.append(
    Case("no BOS", nothing, lambda _: PlainTemplate(add_bos=True)(ROW, tokenizer()), ("`PlainTemplate.add_bos`",))
)

CHATS = {
    "a number": 5,
    "other names": {"tools": "x"},
    "unfinished": "{% if",
    "unknown": "{{ nope.x.y }}",
    "a refusal": "{{ raise_exception('no') }}",
    "a range without an end": "{{ range(10**9) | list }}",
    "an escape": "{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}",
    "a division": "{{ 1 / 0 }}",
    "another file": "{% include '/etc/passwd' %}",
    "itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
}


def chat(of_tokenizer, /, **settings):
    def act(folder):
        text = of_tokenizer
        if isinstance(text, str):
            text = text.replace("MARKER", str(folder.parent / MARKER))
        return ChatTemplate(**settings)(ROW, tokenizer(chat_template=text))

    return act


CHAT = [Case(f"a chat template: {name}", nothing, chat(text), ("chat template",)) for name, text in CHATS.items()]
CHAT += [
    Case("no chat template", nothing, chat(None), ("Use `PlainTemplate`",)),
    Case("an own template that is a number", nothing, chat("x", template=5), ("chat template",)),
    Case("an own template that is unfinished", nothing, chat("x", template="{{"), ("chat template",)),
    Case("tools that are a number", nothing, chat("x", arguments={"tools": 5}), ("chat template",)),
    Case("a contradiction", nothing, chat("x", arguments={"continue_final_message": True}), ("chat template",)),
    Case(
        "a reserved argument", nothing, lambda _: ChatTemplate(arguments={"tokenize": True}), ("must not set tokenize",)
    ),
]


def collate(example, **special):
    return lambda _: Collator(tokenizer=tokenizer(**special))([example])


def rows(*lines, **settings):
    """A data module over rows in a file that is written first."""

    def prepare(folder):
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def act(folder):
        data = PromptDataModule(JsonLines(train=str(folder / "rows.jsonl")), **settings)
        data.connect(tokenizer())
        data.setup("fit")

    return {"prepare": prepare, "act": act}


LONG, SHORTER = ({"prompt": "a" * length, "completion": "b"} for length in (10**6, 10**4))
TOKENS = [
    Case("no tokens in a prompt", nothing, collate(Example("", "b")), ("no tokens",)),
    Case("no EOS for a reference", nothing, collate(ROW, eos_token=None), ("no EOS token",)),
    Case("neither EOS nor pad", nothing, collate(ROW, eos_token=None, pad_token=None), ("no EOS token",)),
    Case("no rows", **rows(), names=("split `train`",)),
    Case("a long prompt that is refused", **rows(LONG, overlong="error"), names=("longest has 1000000",)),
    Case("only long prompts", **rows(SHORTER), names=("1 of 1 prompts",)),
    Case("an unknown policy", **rows(SHORTER, overlong="cut"), names=("drop, truncate_left, error", "'cut'")),
    Case("a field that long rows lack", **rows(LONG, template=PlainTemplate(format="{x}")), names=("field `x`",)),
    Case(
        "a format that long rows refuse",
        **rows(LONG, template=PlainTemplate(format="{prompt:d}")),
        names=("{prompt:d}",),
    ),
]
GYM = [
    ("nope", {}), ("", {}), ("Spell_Backward", {}), ("composite", {}),
    ("spell_backward", {"size": 0}), ("spell_backward", {"size": 2}), ("spell_backward", {"size": -1}),
    ("spell_backward", {"validation_size": -1}), ("spell_backward", {"train_size": 21}),
    ("spell_backward", {"seed": "x"}),
    *(("spell_backward", {"arguments": arguments}) for arguments in (
        {"bogus": 1}, {"min_word_len": "x"}, {"min_word_len": -1}, {"min_word_len": None}, {1: 2}, {"size": 5},
        {"seed": 5}, {"min_word_len": 9, "max_word_len": 2}, {"min_word_len": 500, "max_word_len": 600},
        {"min_word_len": float("nan")}, {"min_word_len": [3] * 10_000},
    )),
    ("basic_arithmetic", {"arguments": {"min_terms": "a"}}), ("chain_sum", {"arguments": {"min_digits": 0}}),
    ("composite", {"arguments": {"datasets": 5}}), ("composite", {"arguments": {"datasets": [{"name": "nope"}]}}),
]  # fmt: skip
TASKS = [
    Case(
        f"reasoning gym: {number} {dataset} {str(given)[:40]}",
        nothing,
        lambda _, d=dataset, g=given: ReasoningGym(dataset=d, **{"size": 20, "validation_size": 2, **g}).load("train"),
        ("easoning",),
    )
    for number, (dataset, given) in enumerate(GYM)
]
TASKS += [
    Case(
        "an unknown split", nothing, lambda _: ReasoningGym(dataset="spell_backward").load("dev"), ("`split`", "'dev'")
    ),
    Case("an alphabet with a letter twice", nothing, lambda _: CharacterTokenizer("aba"), ("['a']",)),
    Case("no alphabet", nothing, lambda _: CharacterTokenizer(""), ("no character",)),
    Case("a special token that is a letter", nothing, lambda _: CharacterTokenizer("ab", eos="a"), ("differ",)),
]


def saved(folder):
    tokenizer().save_pretrained(folder)
    return folder


def with_file(name, data):
    return lambda folder: (saved(folder) / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def changed(name, **changes):
    """Fields of a JSON file replaced; None takes them away."""

    def prepare(folder):
        path = saved(folder) / name
        content = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
        path.write_text(json.dumps(content))

    return prepare


def read(folder):
    return PretrainedTokenizer(str(folder)).load()


STORED = [
    Case(f"{name}: {what}", with_file(name, data), read, ("No tokenizer could be read from `{folder}`",))
    for name in ("tokenizer.json", "tokenizer_config.json")
    for what, data in JUNK.items()
]
STORED += [
    Case(f"{name}: {what}", changed(name, **changes), read, ("{folder}", "tokenizer"))
    for what, name, changes in (
        ("no model", "tokenizer.json", {"model": ...}),
        ("an unknown model", "tokenizer.json", {"model": {"type": "Nope"}}),
        ("no vocabulary", "tokenizer.json", {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}}),
        ("another version", "tokenizer.json", {"version": "9.0"}),
        ("no added tokens", "tokenizer.json", {"added_tokens": ...}),
        ("a class that is a number", "tokenizer_config.json", {"tokenizer_class": 3}),
        ("an EOS that is a number", "tokenizer_config.json", {"eos_token": 5}),
        ("a length that is a text", "tokenizer_config.json", {"model_max_length": "x"}),
        ("an id that is a text", "tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("special tokens that are a text", "tokenizer_config.json", {"extra_special_tokens": "x"}),
    )
]


def hostile_tokenizer(folder):
    (saved(folder) / "evil.py").write_text(hostile_module(folder))
    changed("tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})(
        folder
    )


STORED += [
    Case("a folder with code", hostile_tokenizer, read, ("custom code",)),
    Case("an empty folder", nothing, read, ("{folder}",)),
    Case("a missing tokenizer.json", lambda f: (saved(f) / "tokenizer.json").unlink(), read, ("{folder}",)),
    Case("a pipe as tokenizer", lambda f: os.mkfifo(f / "tokenizer.json"), read, ("tokenizer.json` is a pipe",)),
    *(
        Case(
            f"a tokenizer at {place[:30]!r}",
            nothing,
            lambda _, place=place: PretrainedTokenizer(place).load(),
            ("No token",),
        )
        for place in ("", "/no/such/place", "a\0b", "x/y/z", "https://example.org", "x" * 1000)
    ),
]


def models_of(student, teacher=None, **teachers_settings):
    """Assembles models whose tokenizers were saved in sub-folders."""

    def prepare(folder):
        for name, alphabet in {"student": student, "teacher": teacher}.items():
            if alphabet is not None:
                tiny_source(vocab_size=40).load().save_pretrained(folder / name)
                CharacterTokenizer(alphabet).load().save_pretrained(folder / name)
        if teachers_settings:
            path = folder / "teacher" / "tokenizer_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | teachers_settings))

    def act(folder):
        sources = [Pretrained(str(folder / name)) for name in ("student", "teacher") if (folder / name).is_dir()]
        return load_models(sources[0], sources[-1] if teacher is not None else None, load_tokenizer(sources[0]))

    return {"prepare": prepare, "act": act}


OTHER = ("different tokenizers", "`SimCT`, or a policy gradient such as `OPD` or `SimpleOPD`")
VOCABULARIES = [
    Case("a teacher with letters in another order", **models_of("abc", "cba"), names=OTHER),
    Case("a teacher with fewer letters", **models_of("abcd", "abc"), names=OTHER),
    Case("a teacher with more letters", **models_of("abc", "abcd"), names=OTHER),
    Case("a teacher of another family", **models_of("abc", "xyz"), names=OTHER),
    Case(
        "a tokenizer with more ids than rows",
        **models_of("".join(map(chr, range(97, 147)))),
        names=("40 vocabulary rows",),
    ),
    Case("an EOS that the vocabulary lacks", **models_of("a", "a", eos_token="never"), names=OTHER),
    Case("no tokenizer at all", nothing, lambda _: load_tokenizer(tiny_source()), ("brings no tokenizer",)),
]
TEXT_CASES = [*PLAIN, *CHAT, *TOKENS, *TASKS, *STORED, *VOCABULARIES]


@each(TEXT_CASES)
def test_bad_texts_templates_and_tokenizers_are_named(case, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse(case, tmp_path)


def test_what_is_odd_and_harmless_becomes_tokens():
    """Only special tokens, unknown characters, a megabyte, no pad and a format without a field."""
    for example in (Example("<pad>", "<eos>"), Example("日本🎉", ""), Example("a" * 10**6, "b")):
        batch = Collator(tokenizer=tokenizer())([example])
        assert batch.attention_mask.all()
    batch = Collator(tokenizer=tokenizer(pad_token=None))([Example("a", "b"), Example("abc", "b")])
    assert batch.attention_mask.sum(1).tolist() == [1, 3]
    batch = Collator(tokenizer=tokenizer(eos_token=None, pad_token=None))([Example("a"), Example("abc")])
    assert batch.attention_mask.sum(1).tolist() == [1, 3]
    assert PlainTemplate(format="{{}}")(ROW, None) == "{}"


def test_another_end_of_text_is_warned_of():
    with pytest.warns(UserWarning, match="end their texts differently"):
        compare_ends((1,), (4,), tokenizer())
