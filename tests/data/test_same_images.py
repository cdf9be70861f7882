"""A teacher has to see images as the student does."""

import pytest

from tests import vision
from veto_pl.data.image_reader import ImageReader
from veto_pl.data.same_images import check_processors
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import Pretrained


@pytest.mark.parametrize("style", vision.STYLES)
def test_a_processor_is_like_one_with_the_same_settings(style):
    check_processors(vision.processor(style), vision.processor(style), "model.teacher")


@pytest.mark.parametrize(("style", "name", "value"), [("llava", "image_mean", [0.5, 0.5, 0.5]),
                                                      ("qwen2_5_vl", "patch_size", 8)])  # fmt: skip
def test_another_setting_of_images_is_refused_by_name(style, name, value):
    other = vision.processor(style)
    setattr(other.image_processor, name, value)
    with pytest.raises(ConfigurationError, match=f"`model.teacher` has another processor of images.*`{name}`"):
        check_processors(vision.processor(style), other, "model.teacher")


def test_another_number_of_placeholders_is_refused():
    other = vision.processor("idefics3")
    other.image_seq_len = 9
    with pytest.raises(ConfigurationError, match="`image_seq_len` is 9 instead of 4"):
        check_processors(vision.processor("idefics3"), other, "model.teachers.maths")


def test_a_teacher_is_compared_when_the_first_image_comes(tmp_path):
    teacher = vision.processor("llava")
    teacher.image_processor.image_mean = [0.5, 0.5, 0.5]
    vision.model("llava", 1).save_pretrained(tmp_path)
    teacher.save_pretrained(tmp_path)
    given = {"given": vision.processor("llava")}
    alike = ImageReader(vision.tokenizer("llava"), **given, teachers={"model.teacher": vision.source("llava", 1)})
    assert alike.processor is given["given"]  # random weights bring no processor
    other = ImageReader(vision.tokenizer("llava"), **given, teachers={"model.teacher": Pretrained(str(tmp_path))})
    with pytest.raises(ConfigurationError, match="has another processor of images"):
        other.processor  # noqa: B018
