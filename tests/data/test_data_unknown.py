"""Text that a tokenizer does not know is counted and refused; functions stand for rewards and templates."""

import copy
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.data.chat_tokenizers import chat_tokenizer
from veto_pl.cli.build import VetoCLI
from veto_pl.data import ExampleStream, FunctionReward, FunctionTemplate, JsonLines, PromptDataModule
from veto_pl.data.fingerprints import fingerprint
from veto_pl.data.unknown_text import UnknownText
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.plugins import load_plugins
from veto_pl.seams import Example, Task
from veto_pl.testing.tokenizer_kinds import KINDS, tokenizer_of


class Given(Task):
    def __init__(self, *examples, stream=False):
        self.rows, self.stream = examples, stream

    def load(self, split):
        rows = [*self.rows] if split == "train" else []
        return ExampleStream(lambda: iter(rows)) if self.stream and split == "train" else rows

    def reward(self, example, completion):
        return 0.0


def connected(tokenizer, *examples, stream=False, **options):
    data = PromptDataModule(Given(*examples, stream=stream), **options)
    data.connect(tokenizer)
    data.setup("fit")
    return data


KNOWN, UNKNOWN = Example("abc", "abc"), Example("aXbY", "Zc")


def rows(data):
    encoded = data._rows["train"]
    return list(encoded.rows(None) if data.task.stream else encoded)


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_text_is_refused_with_its_first_row(tokenizer, stream):
    with pytest.raises(DataError, match=r"`<unk>`: the tokenizer does not know the characters 'XYZ' of row 2, 'aXbY'"):
        rows(connected(tokenizer, KNOWN, UNKNOWN, KNOWN, stream=stream))
    assert len(rows(connected(tokenizer, KNOWN, UNKNOWN, KNOWN, stream=stream, unknown=0.2))) == 3


def test_the_share_is_that_of_all_tokens(tokenizer):
    with pytest.raises(DataError, match=r"3 tokens \(14.29%\) of 1 of 3 rows \(train\)"):
        connected(tokenizer, KNOWN, UNKNOWN, KNOWN, unknown=0.14)
    connected(tokenizer, KNOWN, UNKNOWN, KNOWN, unknown=0.15)
    with pytest.raises(ConfigurationError, match=r"unknown` must lie in \[0, 1\], got 1.5"):
        connected(tokenizer, KNOWN, unknown=1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_with_bytes_know_everything(kind):
    unknown = UnknownText(tokenizer_of(kind)).kind
    assert (unknown.unknown is None) == (kind in ("bytes", "bytes with a space in front", "sentence pieces"))
    assert not unknown.drops


def test_an_unknown_token_that_is_an_end_as_well_is_none():
    """GPT-2's `<|endoftext|>` is its EOS and its unknown token, and never written for a text."""
    tokenizer = copy.deepcopy(chat_tokenizer("chatml"))
    tokenizer.unk_token = tokenizer.eos_token
    connected(tokenizer, Example("Some 日本 text", "and an answer"))


def test_characters_that_a_tokenizer_leaves_out_are_unknown():
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abc")} | {"</s>": 3}, []))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    with pytest.raises(DataError, match=r"3 tokens .* are left out: .* the characters 'XYZ' of row 2"):
        connected(tokenizer, Example("a b", "c"), UNKNOWN)


def half(completion, reference, row):
    return 0.5 if row["level"] == "hard" and completion == reference else 0


def shout(prompt, row):
    return f"{prompt.upper()} ({row['level']})"


def broken(completion, reference, row):
    raise KeyError("answer")


def text(completion, reference, row):
    return "good"


HERE = __name__


def test_functions_take_the_place_of_classes(make_tokenizer):
    data = PromptDataModule(JsonLines(train="x"), f"{HERE}.shout", reward=f"{HERE}.half")
    example = Example("abc", "d", {"level": "hard"})
    assert data.template(example, None) == "ABC (hard)"
    data.connect(make_tokenizer())
    judge = data.collator.task
    assert judge.rewards([example, example], ["d", "e"]) == [0.5, 0.0]


def test_rows_are_tokenised_anew_when_the_function_has_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []
    for text in ("a", "b"):
        (tmp_path / "shown_by_me.py").write_text(f"def asked(prompt, row):\n    return '{text}'\n")
        names.append(fingerprint(FunctionTemplate(path="shown_by_me.asked")))
    assert None not in names
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ExactMach", r"`data.reward`: given `ExactMach`, expected the name of a class, or a function of yours"),
        ("os.system", "expected the name of a class, or a function of yours"),
        ("nowhere.at_all", "`nowhere.at_all` cannot be imported: ModuleNotFoundError"),
        (f"{HERE}.nothing", "cannot be imported: AttributeError"),
        (f"{HERE}.shout", r"expected a function of the arguments \(completion, reference, row\): too many"),
        (f"{HERE}.HERE", "expected a function of the arguments"),
    ],
)
def test_what_is_no_function_of_the_arguments_is_refused(path, message):
    with pytest.raises(ConfigurationError, match=message):
        PromptDataModule(JsonLines(train="x"), reward=path)


def test_a_function_that_fails_is_named_with_its_row():
    with pytest.raises(DataError, match=r"`.*broken` raised KeyError: 'answer', for the row 'abc'"):
        FunctionReward(path=f"{HERE}.broken")(KNOWN, "x")
    with pytest.raises(DataError, match=r"`.*text` expected to return a number, got 'good' for 'abc'"):
        FunctionReward(path=f"{HERE}.text")(KNOWN, "x")
    with pytest.raises(DataError, match="raised KeyError"):
        FunctionTemplate(path=f"{HERE}.shout")(KNOWN, None)


def test_a_config_names_a_function(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text("def good(completion, reference, row):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins()
    base = Path(__file__).parents[2] / "configs/debug/base.yaml"
    options = ["--data.reward", "mine_alone.good", "--data.template", f"{HERE}.shout", "--model.objective", "SFT"]
    data = VetoCLI(["--config", str(base), *options], run=False).datamodule
    assert (data.reward, data.template) == (
        FunctionReward(path="mine_alone.good"),
        FunctionTemplate(path=f"{HERE}.shout"),
    )
