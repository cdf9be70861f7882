"""Paths begin at home where they say so, whatever part they belong to."""

import json
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.callbacks import Export
from veto_pl.commands.main import main
from veto_pl.data import JsonLines
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, Gguf, Pretrained, PretrainedTokenizer
from veto_pl.models.assemble import load_tokenizer
from veto_pl.rollouts import FromCache
from veto_pl.seams import ModelSource, RolloutSource, TokenizerSource
from veto_pl.storage.paths import expand_home, local_path
from veto_pl.testing.tiny import ALPHABET, tiny_source

NAMES = {"path", "cache", "folder"}
"""What parts call a place on the disk."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with a model in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_source().load().save_pretrained(tmp_path / "model")
    CharacterTokenizer(ALPHABET).load().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a>", "completion": "b"}\n')
    return tmp_path


def test_models_tokenizers_and_rows_are_found_at_home(home):
    assert Pretrained("~/model").load().config.num_hidden_layers == 2
    assert Pretrained("~/model").stored().files
    assert load_tokenizer(Pretrained("~/model")).eos_token == "<eos>"
    assert PretrainedTokenizer("~/model").load().eos_token == "<eos>"
    assert len(JsonLines(train="~/rows.jsonl").load("train")) == 1
    with pytest.raises(ConfigurationError, match=f"`{home}/store`"):
        FromCache("~/store")
    with pytest.raises(ConfigurationError, match=f"`{home}/files`"):
        Gguf(path="~/files", cache="~/cache").load()
    assert Gguf(path="~/files", cache="~/cache").cache == f"{home}/cache"
    assert Export("~/export").folder == f"{home}/export"


def kinds(kind):
    return {kind}.union(*map(kinds, kind.__subclasses__()))


def test_no_part_with_a_path_is_forgotten():
    """The classes that the test above knows."""
    seams = (ModelSource, TokenizerSource, RolloutSource)
    every = {part for seam in seams for part in kinds(seam) if is_dataclass(part) and part.__module__[:7] == "veto_pl"}
    having = {part for part in every if NAMES & {field.name for field in fields(part)}}
    assert having == {Pretrained, PretrainedTokenizer, Gguf, FromCache}


def test_a_run_reads_and_writes_at_home(home):
    main(["fit", "--data.task=JsonLines", "--data.task.train=~/rows.jsonl", "--model.objective=SFT",
          "--model.student=Pretrained", "--model.student.path=~/model", "--trainer.max_steps=1",
          "--export.folder=~/out", "--trainer.accelerator=cpu", f"--run_dir={home}/run", "--data.max_prompt_tokens=32",
          "--data.max_completion_tokens=32", "--model.evaluation.max_new_tokens=8"])  # fmt: skip
    assert (home / "out" / "config.json").is_file()
    main(["report", f"{home}/run", "--out=~/page.html"])
    assert (home / "page.html").is_file()


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")).filter(lambda text: text[:1] != "~"))
def test_other_paths_stay_as_they_are(path):
    assert expand_home(path) == path


def test_the_home_of_nobody_is_a_name_like_others():
    assert expand_home("~nobody_of_this_name/x") == "~nobody_of_this_name/x"
    assert local_path("~nobody_of_this_name").name == "~nobody_of_this_name"
    assert expand_home(None) is None


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize(
    ("content", "base"),
    [('{"base_model_name_or_path": "some/base"}', "some/base"), ("{}", "its base model"), ("[", "its base model")],
)
def test_an_adapter_is_refused_with_a_remedy(tmp_path, content, base, with_model):
    if with_model:
        tiny_source().load().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    source = Pretrained(str(tmp_path))
    for read in (source.config, source.load, source.stored):
        with pytest.raises(ConfigurationError, match=rf"holds an adapter .* for `{base}`.*as its `start`"):
            read()


def test_a_configuration_keeps_the_path_as_it_was_given(home, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.objective=SFT", "--model.student=Pretrained", "--model.student.path=~/model",
              "--data.task=JsonLines", "--data.task.train=~/rows.jsonl", "--print_config"])  # fmt: skip
    assert json.dumps("~/model").strip('"') in capsys.readouterr().out
