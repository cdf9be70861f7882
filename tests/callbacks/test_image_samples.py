"""Rows with images in sample tables, reports of faults and pages: images are shown, not what stands for them."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests import vision
from veto_pl.callbacks import SampleTable
from veto_pl.data import ChatTemplate, Collator, PlainTemplate
from veto_pl.data.image_reader import ImageReader
from veto_pl.data.shown_prompts import image_names, shown_prompts
from veto_pl.exceptions import DataError
from veto_pl.report import Run, write_report
from veto_pl.rollouts.stored_rows import as_sequences, group_by_prompt
from veto_pl.seams import Example, Picture, Sequences
from veto_pl.training.faulty_rows import row_reports


def batch_of(style, *examples, template=None):
    tokenizer = vision.tokenizer(style)
    reader = ImageReader(tokenizer, given=vision.processor(style))
    return Collator(tokenizer=tokenizer, template=template or ChatTemplate(), images=reader)(examples), tokenizer


def answered(batch):
    """The references as completions."""
    rows = torch.arange(len(batch))
    return Sequences.join(batch, batch.completion_ids, batch.completion_mask, prompts=batch, prompt_rows=rows)


@pytest.mark.parametrize("style", vision.STYLES)
def test_a_prompt_shows_the_sizes_of_its_images(style):
    images = (vision.picture(28, 20), vision.picture(16, 16, 1))
    batch, tokenizer = batch_of(style, Example("what?", "a", images=images), Example("hi", "b"))
    shown, text = shown_prompts(batch, tokenizer)
    word = vision.CONTROL[style][0]
    first, second = (vision.SHOWN[style].replace(word, f"[image {size}]") for size in ("28x20", "16x16"))
    assert shown == f"user:{first}{second}what?\nassistant:"
    assert text == "user:hi\nassistant:"
    assert shown_prompts(replace(batch, template=None), tokenizer)[0].startswith("[image 28x20] [image 16x16] user:")


def test_an_image_that_is_gone_is_shown_as_one(tmp_path):
    vision.picture().save(tmp_path / "a.png")
    batch, tokenizer = batch_of("llava", Example("what?", "a", images=(tmp_path / "a.png",)))
    (tmp_path / "a.png").unlink()
    assert shown_prompts(batch, tokenizer) == ["user:[image]what?\nassistant:"]
    assert image_names(batch.examples[0]) == [str(tmp_path / "a.png")]


def test_images_without_a_path_have_names_of_their_own():
    one, other = (Example("a", images=(vision.picture(seed=seed),)) for seed in (0, 1))
    assert image_names(one) != image_names(other)
    assert image_names(one)[0].startswith("blake2b:")


def test_a_report_of_a_fault_shows_the_image():
    images = (vision.picture(28, 20),)
    batch, tokenizer = batch_of("llava", Example("what?", "a", images=images), Example("hi", "b"))
    first, second = row_reports(batch, answered(batch), None, "FromDataset", tokenizer)
    assert first["prompt"] == "user:[image 28x20]what?\nassistant:"
    assert (first["images"], "images" in second) == (image_names(batch.examples[0]), False)
    assert second["prompt"].endswith("user:hi\nassistant:")


def test_rows_that_are_replayed_have_their_images():
    images = (vision.picture(28, 20),)
    batch, _ = batch_of("llava", Example("what?", "a", images=images), Example("hi", "b"))
    groups = group_by_prompt(answered(batch), 0)
    assert as_sequences(groups, batch).prompts.examples[0].images == batch.examples[0].images


@pytest.fixture
def run(tmp_path):
    """The folder of a run whose samples are two questions alike about two images, and one about none."""
    examples = [Example("what?", "a", images=(vision.picture(28, 20, seed),)) for seed in (0, 1)]
    rows = [
        {"prompt": "[image 28x20]what?", "completion": "a", "reference": "a", "reward": 1.0, "images": ["a.png"]},
        {"prompt": "[image 28x20]what?", "completion": "b", "reference": "b", "reward": 1.0, "images": ["b.png"]},
        {"prompt": "hi", "completion": "c", "reference": None, "reward": 0.0},
    ]
    evaluation = SimpleNamespace(rows=lambda: rows, images=lambda: [*(e.images for e in examples), ()])
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, loggers=[], log_dir=str(tmp_path))
    table = SampleTable(show=False)
    table.on_validation_batch_end(trainer, None, {"evaluation": evaluation})
    samples = [{"step": 3, **row} for row in table._rows]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return tmp_path


def test_a_page_shows_small_copies_beside_the_prompts(run, tmp_path):
    page = write_report([Run.read(run, "run")], tmp_path / "report.html", title="Report").read_text()
    sources = re.findall(r'<img src="(data:image/png;base64,[A-Za-z0-9+/=]+)"', page)
    assert len(set(sources)) == 2
    assert sources[0] == vision_thumbnail(0)
    assert page.count("<article>") == 3
    assert "img-src data:" in page


def vision_thumbnail(seed):
    return Picture.of(vision.picture(28, 20, seed)).thumbnail()


def test_nothing_but_a_small_copy_becomes_an_image(run):
    path = run / "samples.jsonl"
    path.write_text(path.read_text().replace("data:image/png;base64,", "x' onerror='y"))
    with pytest.raises(DataError, match=r"samples\.jsonl:1: `thumbnails\.0`"):
        Run.read(run)


def test_a_small_copy_is_small():
    from PIL import Image

    data = Picture.of(Picture.of(vision.picture(300, 200)).thumbnail())
    assert data.size == (96, 64)
    assert isinstance(data.opened(), Image.Image)


def test_a_plain_template_shows_images_too():
    template = PlainTemplate(format="<image>{prompt}")
    batch, tokenizer = batch_of("llava", Example("what?", "a", images=(vision.picture(),)), template=template)
    assert shown_prompts(batch, tokenizer) == ["[image 16x16]what?"]
