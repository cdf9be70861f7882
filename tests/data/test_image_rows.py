"""Images in files of rows and in messages: where they are found, what is missing, and what a changed one changes."""

import base64
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests import vision
from tests.processes import python
from veto_pl.data import Chat, ChatTemplate, Collator, PromptDataModule, Rows, fingerprints
from veto_pl.data.encoding import encode_rows
from veto_pl.data.image_reader import ImageReader
from veto_pl.data.messages import read_messages
from veto_pl.data.mixtures import Ingredient, MixedExamples
from veto_pl.data.overlong import fit_prompts
from veto_pl.data.processors import read_processor
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models import CharacterTokenizer, InMemory, Pretrained, PretrainedTokenizer, RandomWeights
from veto_pl.seams import Example, Picture, text_of

WORD = "<image>"


@pytest.fixture
def folder(tmp_path):
    """A folder with two images and what writes rows there."""
    (tmp_path / "data").mkdir()
    vision.picture(16, 16, 0).save(tmp_path / "data" / "a.png")
    vision.picture(28, 20, 1).save(tmp_path / "data" / "b.png")
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(fingerprints, "SMALL", 0)


def write(folder, *rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def collator(style="llava", **changed):
    tokenizer = vision.tokenizer(style)
    reader = ImageReader(tokenizer, given=vision.processor(style))
    return Collator(**{"tokenizer": tokenizer, "template": ChatTemplate(), "images": reader} | changed)


def data(task, processor=None, **settings):
    made = PromptDataModule(task, ChatTemplate(), **{"batch_size": 2, "shuffle": False} | settings)
    processor = processor or vision.processor("llava")
    made.connect(processor.tokenizer, processor)
    return made


def question(*images, text="what?", completion="a"):
    return {"prompt": text, "completion": completion, "images": list(images)}


def sizes(example):
    return [image.size for image in example.images]


def encoded_as(kind, file):
    """An image file as each kind of value that a row may hold."""
    data = file.read_bytes()
    told = base64.b64encode(data).decode()
    return {
        "relative": file.name,
        "absolute": str(file),
        "file": file.as_uri(),
        "data": f"data:image/png;base64,{told}",
        "bytes": data,
        "hub": {"bytes": data, "path": "elsewhere.png"},
        "hub path": {"bytes": None, "path": file.name},
        "pillow": Image.open(file),
        "array": np.asarray(Image.open(file)),
    }[kind]


KINDS = ("relative", "absolute", "file", "data", "bytes", "hub", "hub path", "pillow", "array")


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_holds_an_image_in_many_ways(folder, kind):
    given = encoded_as(kind, folder / "b.png")
    task = Rows(train=str(folder / "rows.jsonl"), images="images")
    for value in (given, [given], [given, given]):
        (example,) = task.examples_of(question() | {"images": value}, f"{folder}/rows.jsonl:1", split="train")
        assert sizes(example) == [(28, 20)] * (len(value) if isinstance(value, list) else 1)
        assert np.array_equal(np.asarray(example.images[0].opened()), np.asarray(Image.open(folder / "b.png")))
        assert "images" not in example.row
        assert pickle.loads(pickle.dumps(example)) == example


@pytest.mark.parametrize("part", ["image", "url", "path", "bytes", "image_url", "openai", "base64"])
def test_a_part_of_a_message_names_its_image(folder, part):
    data = (folder / "a.png").read_bytes()
    address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    named = {"type": "image", part: "a.png"}
    named = {"type": "image", "bytes": data} if part == "bytes" else named
    named = {"type": "image_url", "image_url": {"url": address}} if part == "openai" else named
    named = {"type": "image", "base64": address.partition(",")[2]} if part == "base64" else named
    content = [{"type": "text", "text": "see "}, named, {"type": "text", "text": "what?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]}
    (example,) = Chat(train="-").examples_of(row, f"{folder}/rows.jsonl:1", split="train")
    assert sizes(example) == [(16, 16)]
    assert [part["type"] for part in example.conversation.messages[0]["content"]] == ["text", "image", "text"]
    assert (example.prompt, example.completion) == ("see what?", "a")
    json.dumps(example.conversation.plain())


def said(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


PLACES = {
    "in front of the first question": (said("what?", "a"), ["<image>", "what?"]),
    "where the word stands": (said(f"see {WORD}\nwhat?", "a"), ["see ", "<image>", "what?"]),
    "where an empty part stands": (
        said([{"type": "text", "text": "see"}, {"type": "image"}, {"type": "text", "text": "?"}], "a"),
        ["see", "<image>", "?"],
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_images_of_a_field_stand_in_the_messages(folder, name):
    messages, expected = PLACES[name]
    row = {"messages": messages, "image": "a.png"}
    (example,) = Chat(train="-", images="image").examples_of(row, f"{folder}/r:1", split="train")
    content = example.conversation.messages[0]["content"]
    assert [part.get("text", WORD) for part in content] == expected
    assert sizes(example) == [(16, 16)]
    assert read_messages(row, "messages", "here") == messages


def test_an_answer_has_the_images_in_front_of_it_alone(folder):
    row = {"messages": said(f"{WORD}a?", "a", f"{WORD}b?", "b", "c?", "c"), "images": ["a.png", "b.png"]}
    task = Chat(train="-", images="images")
    each = list(task.examples_of(row, f"{folder}/r:1", split="train"))
    assert [sizes(example) for example in each] == [[(16, 16)], [(16, 16), (28, 20)], [(16, 16), (28, 20)]]
    rows = collator().encode(each)
    assert [row.prompt_ids.count(rows[0].prompt_ids[5]) for row in rows] == [4, 8, 8]
    assert [len(row.pictures) for row in rows] == [1, 2, 2]


def test_a_word_is_a_text_where_no_image_is_given_or_it_is_unset(folder):
    row = {"messages": said(f"say {WORD}", "a"), "image": None}
    (example,) = Chat(train="-", images="image").examples_of(row, f"{folder}/r:1", split="train")
    assert example.conversation.messages[0]["content"] == f"say {WORD}"
    (example,) = Chat(train="-", images="image", image_word=None).examples_of(
        row | {"image": "a.png"}, f"{folder}/r:1", split="train"
    )
    assert text_of(example.conversation.messages[0]) == f"say {WORD}"


def broken(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    return {
        "missing": ("gone.png", "cannot be read: No such file"),
        "a folder": (".", "cannot be read"),
        "an empty file": ("empty.png", "damaged or no image"),
        "no image": ("text.png", "damaged or no image"),
        "a number": (5, "expected an image"),
        "bad base64": ("data:image/png;base64,%%%", "not base64"),
        "floats": (np.zeros((4, 4)), "array of uint8"),
    }


BROKEN = ("missing", "a folder", "an empty file", "no image", "a number", "bad base64", "floats")


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_is_none_is_named_with_its_row(folder, name):
    given, message = broken(folder)[name]
    with pytest.raises(DataError, match=rf"rows\.jsonl:7: field `images`: .*{message}"):
        Rows(train="-", images="images").examples_of(question(given), f"{folder}/rows.jsonl:7", split="train")


def test_bad_rows_are_skipped_and_bad_names_are_not_silent(folder):
    path = write(folder, question("gone.png"), question("a.png"))
    with pytest.warns(UserWarning, match="skipped 1 of 2"):
        assert len(Rows(train=path, images="images", on_bad_row="skip").load("train")) == 1
    with pytest.raises(DataError, match="no row has an image, expected some in the field `pictures`"):
        Rows(train=path, images="pictures").load("train")
    with pytest.raises(DataError, match="no row has an image"):
        list(Rows(train=path, images="pictures", streaming=True).load("train"))


def test_numbers_of_places_and_images_must_agree(folder):
    task = Chat(train="-", images="images")
    row = {"messages": said(f"{WORD}{WORD}?", "a"), "images": ["a.png"]}
    with pytest.raises(DataError, match=r"r:3: field `messages` has 2 places for images.*the row has 1 images"):
        list(task.examples_of(row, f"{folder}/r:3", split="train"))
    deaf = collator(template=ChatTemplate(template="{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    with pytest.raises(DataError, match=r"Row 2 \('b'\): the number of its images is 1, .* text is 0: .*`<image>`"):
        deaf.encode([Example("a", "a"), Example("b", "a", images=(vision.picture(),))])


def test_a_damaged_image_is_found_when_its_row_is_encoded(folder):
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    made = data(Rows(train=write(folder, question("a.png"), question("b.png")), images="images"))
    with pytest.raises(DataError, match=r"Row 2 \('what\?'\): The image `.*b\.png` is damaged"):
        made.setup("fit")


@pytest.mark.filterwarnings("ignore:.*worker", "ignore:.*multi-threaded")
@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_read_by_the_workers(folder, workers):
    path = write(folder, question("a.png"), question("b.png"), question(text="no"), question("a.png", "b.png"))
    made = data(Rows(train=path, images="images"), num_workers=workers)
    made.setup("fit")
    expected = collator()(list(made.task.load("train")))
    batches = list(made.train_dataloader())
    rows = [row for batch in batches for row in batch.media.of_rows]
    assert [{name: value.tolist() for name, value in row.items()} for row in rows] == [
        {name: value.tolist() for name, value in row.items()} for row in expected.media.of_rows
    ]
    assert rows[2] == {}


def test_an_image_that_is_gone_when_it_is_read_ends_the_run_by_name(folder):
    made = data(Rows(train=write(folder, question("a.png"), question("b.png")), images="images"))
    made.setup("fit")
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"Row 2 \('what\?'\): The image `.*b\.png` cannot be read"):
        list(made.train_dataloader())


def test_an_image_that_changes_during_a_run_is_no_other_data(folder):
    made = data(Rows(train=write(folder, question("a.png")), images="images"))
    made.setup("fit")
    vision.picture(28, 28, 5).save(folder / "a.png")
    with pytest.raises(DataError, match=r"Row 1 .*a\.png` has changed since its row was encoded"):
        list(made.train_dataloader())


def test_a_changed_image_is_other_data_and_an_equal_one_is_not(folder, cache, tmp_path):
    path = write(folder, question("a.png"), question("b.png"))
    made = collator("qwen2_5_vl")

    def rows():
        return encode_rows(Rows(train=path, images="images").load("train"), made, name="made")

    first = rows()
    again = rows()
    assert (first.summary, first.tokens.cache_files) == (again.summary, again.tokens.cache_files)
    assert first.tokens.cache_files  # so that they are kept
    vision.picture(28, 28, 5).save(folder / "b.png")
    changed = rows()
    assert changed.summary != first.summary
    assert len(changed[1].prompt_ids) != len(first[1].prompt_ids)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    path = str(moved / "rows.jsonl")
    assert rows().summary == changed.summary
    assert rows()[0].example.images[0].path == str(moved / "a.png")
    vision.picture(16, 16, 7).save(moved / "a.png")
    assert rows().summary != changed.summary


def test_the_name_of_rows_without_images_is_as_it_was():
    rows = [Example("a", "b", {"x": 1}), Example("c a", None, {}, ("a",), None, "set", "t")]
    plain = Collator(tokenizer=CharacterTokenizer("abc ").load())
    assert encode_rows(rows, plain).content == "0a1dc8a9367c58fc47535875eebed7ed"


def test_mixed_sets_are_named_by_their_images_too(folder, cache):
    path = write(folder, question("a.png"))
    tasks = {"a": Rows(train=path, images="images"), "b": Rows(train=path)}
    sets = [Ingredient(name, task.load("train")) for name, task in tasks.items()]
    mixed = MixedExamples(tuple(sets))
    before = mixed.pictures
    assert MixedExamples((sets[1],)).pictures is None
    vision.picture(20, 20, 9).save(folder / "a.png")
    again = Ingredient("a", Rows(train=path, images="images").load("train"))
    assert MixedExamples((again, sets[1])).pictures != before


def test_streams_read_images_as_lists_do(folder):
    path = write(folder, question("a.png"), question(text="no"), question("b.png"))
    listed = data(Rows(train=path, images="images"), batch_size=3)
    streamed = data(Rows(train=path, images="images", streaming=True), batch_size=3)
    for made in (listed, streamed):
        made.setup("fit")
    (one,), (other,) = list(listed.train_dataloader()), list(streamed.train_dataloader())
    assert torch.equal(one.input_ids, other.input_ids)
    assert torch.equal(one.media.features()["pixel_values"], other.media.features()["pixel_values"])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_with_images_is_never_cut(folder, streaming):
    path = write(folder, question(text="x" * 40), question("a.png", text="y" * 40), question("a.png", text="z"))
    task = Rows(train=path, images="images", streaming=streaming)
    made = data(task, max_prompt_tokens=35, overlong="truncate_left", batch_size=3)

    def read():
        made.setup("fit")
        return list(made.train_dataloader())

    with pytest.warns(UserWarning, match="images"):
        (batch,) = read()
    assert [example.prompt[0] for example in batch.examples] == ["x", "z"]
    assert batch.attention_mask.sum(1).tolist()[0] == 35
    assert [len(row) for row in batch.media.of_rows] == [0, 1]


def test_rows_that_all_have_images_are_not_all_dropped_in_silence():
    rows = encode_rows([Example("y" * 40, "a", images=(vision.picture(),))], collator())
    with pytest.raises(DataError, match="all have images, which are never cut"):
        fit_prompts(rows, max_prompt_tokens=20, overlong="truncate_left", split="train")


def test_rows_with_images_need_a_reader(folder):
    with pytest.raises(ConfigurationError, match="has images, and nothing reads them here"):
        collator(images=None).encode([Example("a", "b", images=(vision.picture(),))])
    tokenizer = vision.tokenizer("llava")
    text_only = RandomWeights("llama", {})
    for sources, message in (((text_only,), "brings no processor"), ((), "brings no processor")):
        with pytest.raises(ConfigurationError, match=message):
            _ = ImageReader(tokenizer, sources).processor
    with pytest.raises(ConfigurationError, match="`<image>`, which the run's tokenizer does not know"):
        _ = ImageReader(CharacterTokenizer("ab").load(), given=vision.processor("llava")).processor


def test_a_folder_of_text_has_no_processor(tmp_path):
    CharacterTokenizer("ab").load().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigurationError, match="no processor of images could be read from"):
        read_processor({"pretrained_model_name_or_path": str(tmp_path)})


@pytest.mark.parametrize("style", vision.STYLES)
def test_a_processor_is_read_from_where_the_model_lies(style, tmp_path):
    vision.processor(style).save_pretrained(tmp_path)
    tokenizer = vision.tokenizer(style)
    by_place = ImageReader(tokenizer, (RandomWeights("llama", {}), PretrainedTokenizer(str(tmp_path))))
    by_student = ImageReader(tokenizer, (Pretrained(str(tmp_path)),))
    in_memory = ImageReader(tokenizer, (_Holding(vision.processor(style)),))
    batches = [
        Collator(tokenizer=tokenizer, template=ChatTemplate(), images=reader)(
            [Example("what?", "a", images=(vision.picture(20, 12),))]
        )
        for reader in (by_place, by_student, in_memory, pickle.loads(pickle.dumps(by_place)))
    ]
    first = batches[0]
    for batch in batches[1:]:
        assert torch.equal(batch.input_ids, first.input_ids)
        features = batch.media.features()
        assert all(torch.equal(value, features[name]) for name, value in first.media.features().items())
    assert by_place.name == by_student.name


class _Holding(InMemory):
    """A source that holds a processor beside a model, which is not asked for."""

    def __init__(self, processor):
        object.__setattr__(self, "tokenizer", processor)


def test_a_processor_brings_its_tokenizer_and_chat_template():
    processor = vision.processor("llava")
    processor.tokenizer.chat_template = None
    source = _Holding(processor)
    assert source.own_processor is processor
    assert source.own_tokenizer.chat_template == processor.chat_template


def test_a_chat_template_that_lies_beside_the_processor_is_found(tmp_path):
    tokenizer = vision.tokenizer("llava")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert PretrainedTokenizer(str(tmp_path)).load().chat_template == template


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_is_read_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    vision.picture(20, 10).save(tmp_path / "a.png", exif=exif)
    picture = Picture(str(tmp_path / "a.png"))
    assert picture.size == picture.opened().size == ((10, 20) if orientation > 4 else (20, 10))
    given = Example("a", images=(Image.open(tmp_path / "a.png"),)).images[0]
    assert np.array_equal(np.asarray(given.opened()), np.asarray(picture.opened()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_images_of_all_modes_become_pictures(mode):
    image = vision.picture(9, 7)
    image = image.convert("L").convert("I") if mode == "I;16" else image
    picture = Picture.of(image.convert(mode))
    assert picture.opened().mode == "RGB"
    assert picture.size == (9, 7)
    assert Picture.from_plain(json.loads(json.dumps(picture.plain()))) == picture


def test_text_runs_do_without_pillow():
    told = python(
        "-c",
        "import sys\n"
        "sys.modules['PIL'] = None\n"
        "from veto_pl.data import Collator, Rows\n"
        "from veto_pl.models import CharacterTokenizer\n"
        "from veto_pl.seams import Example\n"
        "batch = Collator(tokenizer=CharacterTokenizer('ab').load())([Example('a', 'b')])\n"
        "assert batch.media is None\n"
        "try:\n"
        "    Example('a', images=('a.png',)).images[0].opened()\n"
        "except Exception as error:\n"
        "    print(error)\n",
    )
    assert "cannot be read" in told.stdout, told.stderr


def test_an_address_is_loaded_once(folder):
    import functools
    import http.server
    import threading

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        picture = Picture.of(f"{base}/a.png")
        with pytest.raises(DataError, match="cannot be loaded"):
            Picture.of(f"{base}/gone.png")
        server.shutdown()
    assert picture.data == (folder / "a.png").read_bytes()
    assert not picture.path
