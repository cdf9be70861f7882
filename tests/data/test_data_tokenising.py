"""Prompt and completion have together the text that they were, ends once, and no row can pass for a control word."""

import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.commands.main import main
from veto_pl.data.collate import Collator
from veto_pl.data.control_words import MARK, ControlWords
from veto_pl.data.datamodule import PromptDataModule
from veto_pl.data.tasks import JsonLines
from veto_pl.data.templates import ChatTemplate, PlainTemplate, TemplateMixture
from veto_pl.data.tokenising import tokenise, tokenise_continuations
from veto_pl.exceptions import DataError
from veto_pl.models.initialisation import RandomWeights
from veto_pl.parts.contexts import retold
from veto_pl.seams import Example, Template
from veto_pl.testing.tokenizer_kinds import CONTROL, CORPUS, KINDS, tokenizer_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
LETTERS = sorted({letter for text in CORPUS for letter in text} - set("<>|"))
FAITHFUL = [kind for kind in KINDS if kind != "word pieces"]
ADDITIVE = ["bytes", "characters", "metaspace nowhere"]
texts = st.text(LETTERS, max_size=12)


def read(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", FAITHFUL)
@given(prompt=texts, completion=texts)
def test_prompt_and_completion_have_the_text_of_both(kind, prompt, completion):
    """Whatever the completion begins with, in all tokenizers that keep texts at all."""
    tokenizer = tokenizer_of(kind)
    (row,) = Collator(tokenizer=tokenizer).encode([Example(f"Q{prompt}", completion)])
    assert row.completion_ids[-1] == tokenizer.eos_token_id
    whole = tokenise([f"Q{prompt}{completion}"], tokenizer)[0]
    assert read(tokenizer, row.prompt_ids + row.completion_ids[:-1]) == read(tokenizer, whole)
    assert read(tokenizer, whole).strip() == f"Q{prompt}{completion}".strip()


@pytest.mark.parametrize(("prompt", "completion"), [("Par", "is"), ("2+2=", "4"), ("def f(x):\n", "    return x")])
@pytest.mark.parametrize(
    "kind", ["sentence pieces", "metaspace in front of the first word", "bytes with a space in front"]
)
def test_no_space_is_put_between_prompt_and_completion(kind, prompt, completion):
    tokenizer = tokenizer_of(kind)
    (row,) = Collator(tokenizer=tokenizer).encode([Example(prompt, completion)])
    assert read(tokenizer, row.prompt_ids + row.completion_ids[:-1]).lstrip(" ") == prompt + completion


@pytest.mark.parametrize("kind", ADDITIVE)
@given(text=st.text(max_size=12))
def test_tokenizers_that_add_nothing_keep_their_ids(kind, text):
    tokenizer = tokenizer_of(kind)
    assert tokenise_continuations([text], tokenizer) == tokenizer([text], add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_cannot_be_right_says_so_once(monkeypatch):
    from weakref import WeakKeyDictionary

    monkeypatch.setattr("veto_pl.data.tokenising._found", WeakKeyDictionary())
    for expected in (1, 0):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for kind in KINDS:
                tokenise_continuations(["is"], tokenizer_of(kind))
        assert len([w for w in said if "as another text" in str(w.message)]) == expected


@pytest.mark.parametrize("kind", ["bytes", "sentence pieces"])
def test_an_end_that_a_reference_has_is_not_added(kind):
    tokenizer = tokenizer_of(kind)
    collator = Collator(tokenizer=tokenizer)
    plain, ended, twice = collator.encode([Example("Q", text) for text in ("Paris", "Paris</s>", "Paris</s></s>")])
    assert ended.completion_ids == plain.completion_ids
    assert twice.completion_ids.count(tokenizer.eos_token_id) == 2
    # What the student's text is compared with does not have it, either.
    assert ended.example.completion == "Paris"


def test_the_students_own_ends_count():
    """A ChatML answer of a model whose settings name its last word needs no EOS; of another model it does."""
    tokenizer = tokenizer_of("bytes")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def last(**ends):
        student = RandomWeights("llama", {"vocab_size": 400, **ends})
        example = Example("Q", "yo<|im_end|>", alternatives=("so<|im_end|>", "no"))
        (row,) = Collator(tokenizer=tokenizer, student=student).encode([example])
        return row.completion_ids[-2:], row.example.references

    assert last(eos_token_id=[tokenizer.eos_token_id, end])[0][1:] == [end]
    assert last(eos_token_id=[tokenizer.eos_token_id, end])[1] == ("yo", "so", "no")
    assert last(eos_token_id=tokenizer.eos_token_id) == (
        [end, tokenizer.eos_token_id], ("yo<|im_end|>", "so<|im_end|>", "no"),
    )  # fmt: skip


def test_stored_settings_of_a_folder_are_read(tmp_path):
    from veto_pl.models.loading import Pretrained

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 5}))
    assert Pretrained(str(tmp_path)).end_ids() == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert Pretrained(str(tmp_path)).end_ids() == (1, 7)


def test_bos_is_put_in_front_once():
    tokenizer = tokenizer_of("bytes")
    template = PlainTemplate(add_bos=True)
    assert [template(Example(text), tokenizer) for text in ("it", "<s>it")] == ["<s>it", "<s>it"]


contents = st.lists(st.sampled_from(["it", " ", "\n", "Paris", *CONTROL, "</s>", "<s>", "<<|im_end|>|>"]), max_size=6)


@pytest.mark.parametrize("kind", FAITHFUL)
@given(content=contents.map("".join))
def test_content_is_text(kind, content):
    """The rendered text is what is read, and its control tokens are those of the template, not one more."""
    tokenizer = tokenizer_of(kind)
    template = ChatTemplate(template=CHATML, system="it")
    (row,) = Collator(tokenizer=tokenizer, template=template).encode([Example(content)])
    specials = [i for i in row.prompt_ids if i in tokenizer.all_special_ids and i != tokenizer.unk_token_id]
    own = Collator(tokenizer=tokenizer, template=template).encode([Example("it")])[0].prompt_ids
    assert specials == [i for i in own if i in tokenizer.all_special_ids and i != tokenizer.unk_token_id]
    if kind == "bytes":
        assert read(tokenizer, row.prompt_ids) == template(Example(content), tokenizer)
    assert row.remarks == (("text",) if ControlWords(tokenizer).within(content) else ())


@given(content=texts)
def test_content_without_control_words_is_read_as_ever(content):
    tokenizer = tokenizer_of("sentence pieces")
    for template in (ChatTemplate(template=CHATML), PlainTemplate(format="<s>Q: {prompt}\nA:", control_words="text")):
        (row,) = Collator(tokenizer=tokenizer, template=template).encode([Example(content)])
        assert [row.prompt_ids] == tokenise([template(Example(content), tokenizer)], tokenizer)


READY = "<|im_start|>user\nit<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_that_brings_its_control_words_keeps_them():
    """A conversation that somebody has rendered before; the choice is the template's."""
    tokenizer = tokenizer_of("bytes")

    def encoded(template):
        return Collator(tokenizer=tokenizer, template=template).encode([Example(READY)])[0]

    kept, text = encoded(PlainTemplate()), encoded(PlainTemplate(control_words="text"))
    assert [kept.prompt_ids] == tokenise([READY], tokenizer)
    assert not set(text.prompt_ids) & set(tokenizer.all_special_ids)
    assert read(tokenizer, text.prompt_ids) == read(tokenizer, kept.prompt_ids) == READY
    assert (kept.remarks, text.remarks) == (("tokens",), ("text",))
    chat = encoded(ChatTemplate(template="{{ messages[0].content }}", control_words="tokens"))
    assert chat.prompt_ids == kept.prompt_ids


class ThirdPartyTemplate(Template):
    def __call__(self, example, tokenizer):
        return f"<s>{example.row['more']['texts'][0]}|{example.prompt}"


def test_a_template_of_a_third_party_has_text_for_content():
    tokenizer = tokenizer_of("bytes")
    example = Example("a</s>", row={"more": {"texts": ["<|im_end|>"], "n": 3}})
    (row,) = Collator(tokenizer=tokenizer, template=ThirdPartyTemplate()).encode([example])
    assert row.prompt_ids[0] == tokenizer.bos_token_id
    assert not set(row.prompt_ids[1:]) & set(tokenizer.all_special_ids)
    assert row.example == example


def test_what_reaches_no_prompt_is_not_remarked():
    tokenizer = tokenizer_of("bytes")
    (row,) = Collator(tokenizer=tokenizer).encode([Example("it", row={"other": "</s>"})])
    assert row.remarks == ()


def test_marks_do_not_toss_a_mixture_anew():
    tokenizer = tokenizer_of("bytes")
    mixture = TemplateMixture(first=PlainTemplate(format="A{prompt}"), second=PlainTemplate(format="B{prompt}"))
    examples = [Example(f"{i}</s>", row={"prompt": f"{i}</s>"}) for i in range(20)]
    words = ControlWords(tokenizer)
    shown = [mixture(example, tokenizer) for example in examples]
    assert [mixture(words.mark_words(example), tokenizer) for example in examples] == shown
    assert len({text[0] for text in shown}) == 2


def test_a_hint_is_content_as_well():
    """What a peer wrote, letter by letter, becomes no control token in the teacher's prompt."""
    tokenizer = tokenizer_of("bytes")
    template = ChatTemplate(template=CHATML)
    batch = Collator(tokenizer=tokenizer, template=template)([Example("it")])
    told = retold(batch, ["it <|im_end|> is"], tokenizer, None, "Peer")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (told.input_ids == end).sum() == (batch.input_ids == end).sum() == 1


@given(content=st.lists(st.sampled_from(["<", "|", "a<b", "b>", "<b>", "a<b>", "x"]), max_size=8).map("".join))
def test_overlapping_words_are_all_marked(content):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=["a<b", "<b>", "b>a"])
    words = ControlWords(tokenizer)
    marked = words.mark_words(Example(content)).prompt
    assert words.within(marked) == ""
    assert marked.replace(MARK, "") == content


class Flagged:
    """What `ControlWords` asks of a tokenizer, with words that eat the white space beside them."""

    def __init__(self):
        from tokenizers import AddedToken

        words = [AddedToken("<u>", special=True, rstrip=True), AddedToken("<e>", special=True, lstrip=True)]
        self.added_tokens_decoder = dict(enumerate(words))
        self.all_special_tokens = ["<u>", "<e>"]


def test_words_eat_white_space_beside_text_too():
    words = ControlWords(Flagged())
    text = words.mark_words(Example(" a<e> \n")).prompt
    assert words.parts(f"<u>\n{text}<e>x") == [("<u>", "tokens"), ("a<e>", "text"), ("<e>x", "tokens")]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def served(tmp_path, rows, **settings):
    """A connected data module over a file, and what it says."""
    file = lines(tmp_path / "rows.jsonl", rows)
    data = PromptDataModule(JsonLines(train=file, validation=file), **settings)
    data.connect(tokenizer_of("bytes"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data.setup("fit")
    return data, [str(w.message) for w in said]


LONG = [{"prompt": "it", "completion": "is it " * n} for n in (1, 2, 9, 1, 8)]


def test_references_that_are_cut_are_counted(tmp_path):
    """As many tokens as before, and a sentence with their number, for the rows that are trained on."""
    data, said = served(tmp_path, LONG, max_completion_tokens=10)
    lengths = [len(row.completion_ids) + row.cut for row in data.rows("train")]
    assert [max(length - 10, 0) for length in lengths] == [row.cut for row in data.rows("train")]
    assert [len(row.completion_ids) for row in data.rows("train")] == [min(length, 10) for length in lengths]
    (sentence,) = [text for text in said if "references" in text]
    assert sentence.startswith(
        "2 of 5 references (train) exceed max_completion_tokens=10: they are cut and have no EOS"
    )


def test_references_that_would_be_cut_can_be_dropped_or_refused(tmp_path):
    data, said = served(tmp_path, LONG, max_completion_tokens=10, overlong_completions="drop")
    assert [row.number for row in data.rows("train")] == [0, 1, 3]
    assert len(data.rows("validation")) == 5, "an evaluation reads every row"
    assert [text for text in said if "references" in text] == [
        "2 of 5 references (train) exceed max_completion_tokens=10: dropped."
    ]
    with pytest.raises(DataError, match=r"2 of 5 references .*none may be used"):
        served(tmp_path, LONG, max_completion_tokens=10, overlong_completions="error")
    with pytest.raises(DataError, match="5 of 5 references"):
        served(tmp_path, LONG, max_completion_tokens=1, overlong_completions="drop")
    assert [text for text in served(tmp_path, LONG)[1] if "references" in text] == []


def test_control_words_are_counted(tmp_path):
    rows = [
        {"prompt": READY, "completion": "is"},
        {"prompt": "it", "completion": "i<s>s</s>"},
        {"prompt": "it", "completion": "is</s>"},
    ]
    _, said = served(tmp_path, rows)
    told = [text for text in said if "control words" in text]
    assert [text[: text.index(" hold")] for text in told] == [
        "1 of 3 prompts (train)", "1 of 3 references (train)",
        "1 of 3 prompts (validation)", "1 of 3 references (validation)",
    ]  # fmt: skip
    assert "`<|im_start|>`" in told[0]
    assert "`<s>`" in told[1]
    _, said = served(tmp_path, rows, template=ChatTemplate(template=CHATML))
    assert any(text.startswith("1 of 3 prompts (train)") and "as text" in text for text in said)


def test_a_run_says_what_it_cuts(tmp_path, capfd):
    """As a user meets it: rows that are longer than the limit, with the command line alone."""
    task = {"train": lines(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "abcabc"}] * 4)}
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = {
        "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_model_summary": False, "logger": False},
        "data": {
            "task": {"class_path": "JsonLines", "init_args": task},
            "max_completion_tokens": 4,
        },
        "model": {
            "objective": {"class_path": "SFT"},
            "student": {"class_path": "RandomWeights", "init_args": {"model_type": "llama", "dimensions": sizes}},
            "tokenizer": {"class_path": "CharacterTokenizer", "init_args": {"alphabet": ">abc"}},
        },
        "run_dir": str(tmp_path / "run"),
        "export": {"folder": None},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"4 of 4 references \(train\) exceed max_completion_tokens=4"):
        main(["fit", "--config", str(tmp_path / "config.yaml")])
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(tmp_path / "config.yaml"), "--data.overlong_completions", "error"])
    assert "none may be used" in f"{ended.value.code} {capfd.readouterr().err}"
