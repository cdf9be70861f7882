"""Exports of students that read images are read by transformers, and are the student, tower and all."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests import vision
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import Lora
from veto_pl.models.assemble import load_models
from veto_pl.models.blueprint import rebuild_student, student_files
from veto_pl.models.export_folder import export_student


@pytest.mark.parametrize("style", vision.STYLES)
def test_an_export_is_read_by_transformers_and_reads_images_as_the_student_does(style, tmp_path):
    models = vision.models(style)
    export_student(models.student, models.tokenizer, None, tmp_path / "export")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "export").eval()
    text = vision.shown(style, "what is it>")
    asked = vision.processor(style)(text=[text], images=[vision.picture()], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**asked).logits, models.student.model.eval()(**asked).logits)
    rebuilt, _ = rebuild_student(
        student_files(models.student.model, models.tokenizer), tmp_path, tensors=99, trust_remote_code=False
    )
    assert type(rebuilt.model) is type(models.student.model)


def test_an_export_whose_tower_is_another_one_is_not_kept(tmp_path, monkeypatch):
    models = vision.models("llava")
    write = type(models.student.model).save_pretrained

    def save_pretrained(model, folder, **given):
        state = {name: value + ("vision_tower" in name) for name, value in model.state_dict().items()}
        write(model, folder, **(given | {"state_dict": state}))

    monkeypatch.setattr(type(models.student.model), "save_pretrained", save_pretrained)
    with pytest.raises(ConfigurationError, match="which reads images, has other numbers"):
        export_student(models.student, models.tokenizer, None, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("adapter", ["merged", "separate"])
def test_a_student_with_an_adapter_is_exported(adapter, tmp_path):
    pytest.importorskip("peft")
    source = Lora(vision.source("qwen3_vl"), rank=2, seed=1)
    models = load_models(source, None, vision.tokenizer("qwen3_vl"))
    with torch.no_grad():
        for weight in models.student.parameters():
            weight += 0.05 * weight.requires_grad
    export_student(models.student, models.tokenizer, None, tmp_path / "export", adapter=adapter, source=source)
    folder = tmp_path / "export" / ("base" if adapter == "separate" else "")
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is type(models.student.model)
