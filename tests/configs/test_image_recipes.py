"""The recipes with images build with the shapes of real models."""

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2Config

from tests.configs.test_configs import build, parsed_parameters, small_qwen_tokenizer
from veto_pl.models.vision import image_weights
from veto_pl.objectives import BRTS, UniOPD
from veto_pl.parts.panels import Routed

SHAPES = {
    "3B": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
           "intermediate_size": 11008, "vocab_size": 151936},
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
}  # fmt: skip
TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Folders with the configurations of Qwen2.5-VL-3B and 7B and of a Qwen2.5 of text, and no weights."""
    root = tmp_path_factory.mktemp("qwen2_5_vl")
    for name, shape in SHAPES.items():
        tied = {"tie_word_embeddings": name == "3B"}
        tower = TOWER | {"out_hidden_size": shape["hidden_size"]}
        Qwen2_5_VLConfig(text_config=shape | tied, vision_config=tower, **tied).save_pretrained(root / name)
    text = SHAPES["7B"] | {"architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151645, "tie_word_embeddings": False}
    Qwen2Config(**text).save_pretrained(root / "text")
    for name in (*SHAPES, "text"):
        small_qwen_tokenizer(root / name)
    return root


def billions(weights):
    return sum(weight.numel() for weight in weights) / 1e9


def test_brts_builds_with_the_real_shapes(qwen):
    folders = [f"--model.student.source.path={qwen / '3B'}", f"--model.teacher.path={qwen / '7B'}"]
    cli = build("recipes/qwen2_5_vl_brts.yaml", options=[*folders, "--trainer.strategy=auto"])
    models = parsed_parameters(cli.model)
    assert billions(models.student.parameters()) == pytest.approx(3.75, abs=0.01)
    assert billions(models.teacher.parameters()) == pytest.approx(8.29, abs=0.01)
    tower = image_weights(models.student.model)
    assert billions(tower) == pytest.approx(0.67, abs=0.01)
    assert not any(weight.requires_grad for weight in tower)
    assert isinstance(cli.model.objective, BRTS)
    assert cli.datamodule.task.images == "images"


def test_uni_opd_builds_with_a_teacher_of_images_and_one_of_text(qwen):
    folders = [f"--model.student.path={qwen / '3B'}", f"--model.teachers.vision.path={qwen / '7B'}",
               f"--model.teachers.text.path={qwen / 'text'}"]  # fmt: skip
    cli = build("recipes/qwen2_5_vl_uni_opd.yaml", options=[*folders, "--trainer.strategy=auto"])
    models = parsed_parameters(cli.model)
    assert billions(models.teachers["vision"].parameters()) == pytest.approx(8.29, abs=0.01)
    assert billions(models.teachers["text"].parameters()) == pytest.approx(7.62, abs=0.01)
    assert isinstance(cli.model.objective, UniOPD)
    assert isinstance(cli.model.objective.panel, Routed)
    assert {name: one.teacher for name, one in cli.datamodule.task.sets.items()} == {
        "figures": "vision",
        "words": "text",
    }
