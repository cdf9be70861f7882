"""An export of a student that reads images has its processor beside the tokenizer; other exports are as they were."""

import json

import pytest
import torch

from tests import vision
from veto_pl.data import ChatTemplate, Collator
from veto_pl.data.image_reader import ImageReader
from veto_pl.data.processors import FILES, read_processor, saved_processor
from veto_pl.models import CharacterTokenizer, Pretrained, RandomWeights
from veto_pl.models.assemble import load_student
from veto_pl.models.blueprint import rebuild_processor, student_files
from veto_pl.models.export_folder import export_student
from veto_pl.seams import Example

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def features(processor, tokenizer):
    reader = ImageReader(tokenizer, given=processor)
    made = Collator(tokenizer=tokenizer, template=ChatTemplate(), images=reader)
    return made([Example("what?", "a", images=(vision.picture(20, 12),))])


@pytest.fixture
def student():
    tokenizer = CharacterTokenizer("abc").load()
    return load_student(RandomWeights("llama", SIZES), tokenizer), tokenizer


@pytest.mark.parametrize("style", vision.STYLES)
def test_an_export_has_the_processor_of_the_students_place(style, student, tmp_path):
    vision.processor(style).save_pretrained(tmp_path / "base")
    files = saved_processor([Pretrained(str(tmp_path / "base"))])
    model, _ = student
    export_student(model, student[1], None, tmp_path / "out", processor=files)
    vision.tokenizer(style).save_pretrained(tmp_path / "words")
    for name in files:
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "base" / name).read_text()
        (tmp_path / "words" / name).write_text((tmp_path / "out" / name).read_text())
    again = read_processor({"pretrained_model_name_or_path": str(tmp_path / "words")})
    ours, theirs = (features(one, vision.tokenizer(style)) for one in (vision.processor(style), again))
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.media.features()["pixel_values"], theirs.media.features()["pixel_values"])


def test_a_checkpoint_describes_the_processor(student):
    model, tokenizer = student
    told = {"processor_config.json": json.dumps({"word": "é日"}, ensure_ascii=False)}
    files = student_files(model.model, tokenizer, None, lambda network: told)
    assert rebuild_processor(files) == told
    assert max("".join(files.values())) < "\u0100"


def test_a_student_of_text_has_no_processor(student, tmp_path):
    class Refusing(Pretrained):
        @property
        def processor_source(self):
            raise AssertionError("a student of text is not asked")

    model, tokenizer = student
    assert ImageReader(tokenizer, (Refusing("nowhere"),)).files(model.model) == {}
    export_student(model, tokenizer, None, tmp_path / "out")
    assert not [name for name in FILES if (tmp_path / "out" / name).exists()]


def test_a_processor_in_memory_is_written():
    class Holding(RandomWeights):
        own_processor = vision.processor("llava")

    files = saved_processor([Holding("llama", {})])
    assert json.loads(files["processor_config.json"])["processor_class"] == "LlavaProcessor"
