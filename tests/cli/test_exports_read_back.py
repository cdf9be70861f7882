"""An export answers as the student did in the last validation, whoever reads it back."""

import importlib.util
import json
from itertools import product
from string import ascii_lowercase

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from veto_pl.commands.main import main
from veto_pl.models import CharacterTokenizer, Pretrained
from veto_pl.models.assemble import load_student, load_tokenizer
from veto_pl.models.export_folder import export_student
from veto_pl.testing.tiny import tiny_source

from .conftest import changed

WORDS = ["abc", "a", "bcabca", "ca", "abbccaab", "b", "ccba", "bab", "cabcab", "ac", "acb", "bb"]
END = ascii_lowercase.index("g") + 4
"""The id of the letter g, which ends texts too where a model's generation settings say so."""
CHAT = "{% for message in messages %}<{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
TEMPLATES = {
    "plain": {"class_path": "PlainTemplate", "init_args": {"format": "q{prompt}>"}},
    "chat": {"class_path": "ChatTemplate", "init_args": {"template": CHAT, "user": "u{prompt}", "system": "s"}},
}
LAYERS = {"num_hidden_layers": 2, "vocab_size": len(ascii_lowercase) + 5}


def random(model_type, **dimensions):
    source = tiny_source(model_type, **{"vocab_size": LAYERS["vocab_size"]} | dimensions)
    return {"class_path": "RandomWeights", "init_args": {"model_type": model_type, "dimensions": source.dimensions}}


def stored(folder, tokenizer=True, **ends):
    """A model in a folder, with settings of its own about where its texts end."""
    model = tiny_source(**LAYERS).load()
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    if tokenizer:
        CharacterTokenizer(ascii_lowercase + "<>").load().save_pretrained(folder)
    return str(folder)


def two_ends(folder, monkeypatch):
    """As an instruction-tuned model has them."""
    return {"class_path": "Pretrained", "init_args": {"path": stored(folder, eos_token_id=[1, END])}}


def pruned(folder, monkeypatch):
    source = {"class_path": "Pretrained", "init_args": {"path": stored(folder)}}
    return {"class_path": "Pruned", "init_args": {"source": source, "drop_layers": [1]}}


def gguf(folder, monkeypatch):
    """What transformers makes of such a file: a model and a tokenizer."""
    made = stored(folder / "made", eos_token_id=[1, END])
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    for kind in (AutoModelForCausalLM, AutoTokenizer):
        read = kind.from_pretrained

        def reads(*args, gguf_file=None, read=read, **settings):
            if gguf_file is None:
                return read(*args, **settings)
            read_back = read(made)
            if hasattr(read_back, "config"):
                read_back.config.quantization_config = {"quant_method": "gguf"}
            return read_back

        monkeypatch.setattr(kind, "from_pretrained", reads)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return {"class_path": "Gguf", "init_args": {"path": str(folder / "tiny.gguf"), "cache": str(folder / "cache")}}


SOURCES = {
    "llama": lambda *_: random("llama"),
    "gpt2": lambda *_: random("gpt2"),
    "qwen2": lambda *_: random("qwen2"),
    "two ends": two_ends,
    "pruned": pruned,
    "gguf": gguf,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fitted(config, write, tmp_path, student, template):
    """The last validation's rows of a run that has learnt a little, and its run folder."""
    rows = "".join(json.dumps({"prompt": word, "completion": word[::-1] + "g"}) + "\n" for word in WORDS)
    (tmp_path / "rows.jsonl").write_text(rows)
    file = str(tmp_path / "rows.jsonl")
    settings = changed(config, {
        "trainer.max_steps": 60, "trainer.val_check_interval": 60, "data.template": TEMPLATES[template],
        "data.task.init_args.train": file, "data.task.init_args.validation": file, "data.batch_size": 12,
        "data.validation_batch_size": 4, "model.student": student, "model.evaluation.max_new_tokens": 12,
        "model.tokenizer.init_args.alphabet": ascii_lowercase + "<>", "samples.number": len(WORDS),
        "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        "validate_first": False, "progress.lines": 1,
    })  # fmt: skip
    main(["fit", "--config", write(settings)])
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][-len(WORDS) :], tmp_path / "run"


def answers(folder, prompts):
    """What `pipeline` writes behind prompts of different lengths, four at a time."""
    writer = pipeline("text-generation", model=str(folder), dtype=torch.float32)
    written = writer(prompts, batch_size=4, do_sample=False, max_new_tokens=12, return_full_text=False)
    return [one["generated_text"] for (one,) in written]


FAST = (("llama", "plain"), ("two ends", "chat"))
EACH = [pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in product(SOURCES, TEMPLATES)]


@pytest.mark.parametrize(("source", "template"), EACH)
def test_an_export_answers_as_in_the_last_validation(config, write, tmp_path, monkeypatch, source, template):
    (tmp_path / "student").mkdir()
    student = SOURCES[source](tmp_path / "student", monkeypatch)
    rows, run = fitted(config, write, tmp_path, student, template)
    expected = [row["completion"] for row in rows]
    assert len({len(text) for text in expected}) > 2, "the answers should end at different places"
    assert answers(run / "export", [row["prompt"] for row in rows]) == expected
    messages = [[{"role": "user", "content": word}] for word in WORDS]
    assert answers(run / "export", messages) == expected
    main(["export", str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "again")])
    assert answers(tmp_path / "again", messages) == expected
    for folder in (run / "export", tmp_path / "again"):
        says_where_texts_end(folder, [1, END] if source in ("two ends", "gguf") else 1)


def says_where_texts_end(folder, ends):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "left"
    for settings in (model.config, model.generation_config):
        assert settings.eos_token_id == ends
        assert settings.pad_token_id == tokenizer.pad_token_id == 0


def test_prompts_that_a_message_does_not_make_leave_an_export_without_a_chat_template(config, write, tmp_path):
    template = {"class_path": "PlainTemplate", "init_args": {"format": "{prompt}{completion}"}}
    main(["fit", "--config", write(changed(config, {"data.template": template}))])
    export = tmp_path / "run" / "export"
    assert AutoTokenizer.from_pretrained(export).chat_template is None
    assert "The student has no chat template" in (export / "README.md").read_text()


def test_generation_settings_that_contradict_each_other_do_not_cost_the_export(tmp_path):
    """Some published models have them: transformers reads them with a warning, and refuses to save them."""
    path = stored(tmp_path / "model")
    settings = {"do_sample": False, "temperature": 0.6, "eos_token_id": [1, END], "pad_token_id": 0}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    source = Pretrained(path)
    tokenizer = load_tokenizer(source)
    with pytest.warns(UserWarning, match=r"contradict each other and are left out of the export: .*`temperature`"):
        export_student(load_student(source, tokenizer), tokenizer, None, tmp_path / "export")
    says_where_texts_end(tmp_path / "export", [1, END])
