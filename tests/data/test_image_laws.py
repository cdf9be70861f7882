"""Rows with images are what the model's own processor makes of them, whatever stands beside them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import vision
from veto_pl.data import ChatTemplate, Collator, PlainTemplate
from veto_pl.data.image_reader import ImageReader
from veto_pl.seams import Conversation, Example, Media

OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")
PICTURES = st.builds(vision.picture, st.integers(8, 30), st.integers(8, 30), st.integers(0, 9))
TEXTS = st.text("abc ?\n", min_size=1, max_size=6).map(lambda text: f"x{text}x")
EXAMPLES = st.builds(lambda text, images: Example(text, "yes", images=images), TEXTS, st.lists(PICTURES, max_size=2))
STYLES = pytest.mark.parametrize("style", vision.STYLES)
FEW = settings(max_examples=8, deadline=None)


def collator(style, **changed):
    tokenizer = vision.tokenizer(style)
    reader = ImageReader(tokenizer, given=vision.processor(style))
    return Collator(**{"tokenizer": tokenizer, "template": ChatTemplate(), "images": reader} | changed)


def opened(example):
    return [image.opened() for image in example.images]


def own(style, text, images):
    """What the processor itself makes of one row: its ids, and the features without an axis of rows."""
    made = vision.processor(style)(text=[text], images=images or None, return_tensors="pt")
    features = {name: made[name] for name in made if name not in OF_TEXT}
    return made["input_ids"][0].tolist(), {n: v[0] if style == "idefics3" else v for n, v in features.items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@STYLES
@FEW
@given(examples=st.lists(EXAMPLES, min_size=1, max_size=3))
def test_a_row_is_what_the_processor_makes_of_it(style, examples):
    made = collator(style)
    batch = made(examples)
    for i, example in enumerate(examples):
        text = ChatTemplate()(example, made.tokenizer)
        ids, features = own(style, text, opened(example))
        assert batch.input_ids[i][batch.attention_mask[i]].tolist() == ids
        assert same({} if batch.media is None else batch.media.of_rows[i], features)
    assert (batch.media is None) == (not any(example.images for example in examples))


@STYLES
@FEW
@given(example=EXAMPLES, others=st.lists(EXAMPLES, max_size=3))
def test_a_row_does_not_depend_on_its_neighbours(style, example, others):
    made = collator(style)
    alone, among = made([example]), made([*others, example])
    assert torch.equal(alone.input_ids[0], among.input_ids[-1][among.attention_mask[-1]])
    for batch in (alone, among):
        _, features = own(style, ChatTemplate()(example, made.tokenizer), opened(example))
        assert same({} if batch.media is None else batch.media.of_rows[-1], features)


@STYLES
@FEW
@given(before=TEXTS, after=TEXTS, number=st.integers(0, 2))
def test_a_text_that_spells_the_word_for_an_image_is_a_text(style, before, after, number):
    made = collator(style)
    spelled = f"{before}{vision.CONTROL[style][0]}{after}"
    images = tuple(vision.picture(seed=seed) for seed in range(number))
    (row,) = made.encode([Example(spelled, "yes", images=images)])
    (plain,) = made.encode([Example(before + after, "yes", images=images)])
    place = made.tokenizer.get_vocab()[vision.CONTROL[style][0]]
    assert row.prompt_ids.count(place) == plain.prompt_ids.count(place)
    assert spelled in made.tokenizer.decode(row.prompt_ids)


@STYLES
@FEW
@given(texts=st.lists(TEXTS, min_size=4, max_size=4), number=st.integers(1, 2))
def test_a_conversation_with_references_is_the_processors_text(style, texts, number):
    images = tuple(vision.picture(8 + 8 * seed, 16, seed) for seed in range(number))
    content = [{"type": "image"}, {"type": "text", "text": texts[0]}, *[{"type": "image"}] * (number - 1)]
    roles = ("user", "assistant", "user", "assistant")
    said = tuple({"role": r, "content": content if i == 0 else texts[i]} for i, r in enumerate(roles))
    example = Example(texts[0], texts[3], conversation=Conversation(said, (1, 3)), images=images)
    made = collator(style)
    (row,) = made.encode([example])
    whole = made.tokenizer.apply_chat_template([dict(one) for one in said], tokenize=False)
    ids, features = own(style, whole, opened(example))
    assert row.prompt_ids + row.completion_ids == ids
    assert same(made.pad([row]).media.of_rows[0], features)


@STYLES
def test_a_plain_prompt_shows_images_where_the_word_stands(style, recwarn):
    shown = vision.SHOWN[style]
    made = collator(style, template=PlainTemplate(format=f"{shown}{{prompt}}"))
    images = (vision.picture(20, 12),)
    batch = made([Example("what?", "a", images=images)])
    assert batch.input_ids[0].tolist() == own(style, f"{shown}what?", list(images))[0]
    inside = replace(made, template=PlainTemplate()).encode([Example(f"{shown}what?", "a", images=images)])
    assert inside[0].prompt_ids == batch.input_ids[0].tolist()


def test_a_template_that_knows_contents_in_parts_only_gets_parts():
    made = collator("llava")
    made.tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    text, image = made([Example("what?", "a"), Example("this?", "b", images=(vision.picture(),))]).input_ids.tolist()
    assert made.tokenizer.decode(text).endswith("what?")
    assert made.tokenizer.decode(image) == "<image>" * 4 + "this?"


def test_a_tokenizer_that_begins_rows_by_itself_does_so_in_rows_with_images():
    from tokenizers.processors import TemplateProcessing

    made, processor = collator("llava"), vision.processor("llava")
    for tokenizer in (made.tokenizer, processor.tokenizer):
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        core = TemplateProcessing("<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = core
    example = Example("what?", "a", images=(vision.picture(),))
    text = ChatTemplate()(example, made.tokenizer)
    ids = processor(text=[text], images=opened(example))["input_ids"][0]
    assert ids[0] == made.tokenizer.bos_token_id
    assert made([example]).input_ids[0].tolist() == ids


@FEW
@given(sizes=st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=4))
def test_features_of_several_sizes_are_filled_up_as_a_processor_does(sizes):
    rows = [{"pixel_values": torch.rand(n, 3, height, width)} for n, height, width in sizes]
    joined = Media((*rows, {})).features()["pixel_values"]
    assert joined.shape == (sum(n for n, *_ in sizes), 3, max(h for _, h, _ in sizes), max(w for *_, w in sizes))
    start = 0
    for row, (n, height, width) in zip(rows, sizes, strict=True):
        own = joined[start : start + n]
        assert torch.equal(own[:, :, :height, :width], row["pixel_values"])
        assert not own[:, :, height:].any()
        assert not own[:, :, :, width:].any()
        start += n
