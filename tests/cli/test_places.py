"""A path or hub id on the command line stands for the model, or the tokenizer, that lies there."""

import pytest

from veto_pl.cli.build import VetoCLI
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import Lora, Pretrained, PretrainedTokenizer, Pruned
from veto_pl.plugins import load_plugins


@pytest.fixture
def built(write, config):
    load_plugins()
    return lambda *options: VetoCLI(["--config", write(config), *options], run=False)


def test_places_are_read_where_a_model_is_named(built):
    options = ["--model.student=runs/first/export", "--model.teacher=Qwen/Qwen3-8B", "--model.teacher.dtype=bfloat16"]
    cli = built(*options, "--model.tokenizer=./tokenizer")
    assert cli.model.student_source == Pretrained("runs/first/export")
    assert cli.model.teacher_source == Pretrained("Qwen/Qwen3-8B", dtype="bfloat16")
    assert cli.model.tokenizer_source == PretrainedTokenizer("./tokenizer")
    assert "path: Qwen/Qwen3-8B" in cli.parser.dump(cli.config), "config.yaml has the class and its path"


def test_places_are_read_inside_of_other_models(built):
    pruned = '{"class_path": "Pruned", "init_args": {"source": "a/b", "keep_layers": [0]}}'
    cli = built("--model.student=Lora", f"--model.student.source={pruned}", "--model.student.targets=[q_proj]")
    assert cli.model.student_source == Lora(Pruned(Pretrained("a/b"), keep_layers=(0,)), targets=("q_proj",), seed=0)
    plain = built("--model.student=Lora", "--model.student.source=a/b").model.student_source
    assert plain == Lora(Pretrained("a/b"), seed=0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.student=Pretraned", "`model.student`: given `Pretraned`, .* Did you mean `Pretrained`"),
        ("--model.teacher=http://127.0.0.1:8123/v1", r"`model\.teacher\.init_args\.path`.*`ServedTeacher`"),
        ("--model.objective=a/b", "`model.objective`: given `a/b`, which names no class"),
        ("--model.teacher=StudentBase", "needs a student with an adapter, but `model.student` is a `RandomWeights`"),
        ("--model.student=InMemory", "`model.student.init_args.model`|a value is required|`model.student.model`"),
    ],
)
def test_what_is_no_place_is_told_as_before(built, option, message):
    with pytest.raises(ConfigurationError, match=message):
        built(option)
