"""Tiny models that read images, with their processors, made without any download.

Of each style there is a configuration, a model with random weights, and the processor of transformers around a
tokenizer of characters: `llava` (CLIP and a projector), `qwen2_5_vl` and `qwen3_vl` (any number of patches, M-RoPE),
and `idefics3`, which SmolVLM is (an image is cut into tiles, and shown whole besides).
"""

from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Processor,
    LlavaProcessor,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
)

from veto_pl.models.assemble import load_models
from veto_pl.models.initialisation import RandomWeights
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.seams import Example, Media, Models, PromptBatch, pad_left, pad_right

STYLES = ("llava", "qwen2_5_vl", "qwen3_vl", "idefics3")
ALPHABET = ">abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,:;?!+-*/=()'<|_"
QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
TILES = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))
CONTROL = {
    "llava": ("<image>",),
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "idefics3": ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *TILES),
}
"""Words that are one token each beside the characters, the placeholder of an image first."""
SHOWN = {
    "llava": "<image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "idefics3": "<image>",
}
"""How the chat template writes an image, and how it stands in a text before the processor expands it."""
CHAT = (
    "{% for message in messages %}{{ message['role'] + ':' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ 'SHOWN' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TOWER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "initializer_range": 0.4}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
"""Which quarters of 4 frequencies belong to time, height and width."""


def by_pillow(name: str) -> Any:
    """Return the class of image processors that needs no torchvision; early versions have no other of that name."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _images_only(kind: type) -> type:
    """Return the processor of a library's class without the part for videos, which needs torchvision."""

    class ImagesOnly(kind):  # type: ignore[misc,valid-type]
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    ImagesOnly.__name__ = kind.__name__  # as a saved processor is called
    return ImagesOnly


def dimensions(style: str) -> dict[str, Any]:
    """Return the fields of the configuration of a style, as `RandomWeights.dimensions` takes them."""
    ids = tokenizer(style).get_vocab()
    text = TEXT | {"vocab_size": len(ids)}
    if style == "llava":
        tower = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        tower = tower | {"model_type": "clip_vision_model", "projection_dim": 16}
        text = text | {"model_type": "llama"}
        return {"text_config": text, "vision_config": tower, "image_token_index": ids["<image>"]}
    if style == "idefics3":
        tower = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}
        text = text | {"model_type": "llama"}
        return {"text_config": text, "vision_config": tower, "image_token_id": ids["<image>"], "scale_factor": 2}
    tower = TOWER | {"depth": 2, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16}
    rotary = dict(MROPE)
    if style == "qwen2_5_vl":
        tower = tower | {"window_size": 16, "fullatt_block_indexes": [1]}
    else:
        tower = tower | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        rotary, text = rotary | {"mrope_interleaved": True}, text | {"head_dim": 8}
    special = {f"{name}_token_id": ids[word] for name, word in zip(("image", "video"), QWEN, strict=False)}
    special |= {f"vision_{name}_token_id": ids[f"<|vision_{name}|>"] for name in ("start", "end")}
    return {"text_config": text | {"rope_parameters": rotary}, "vision_config": tower, **special}


def source(style: str, seed: int = 0, **changed: Any) -> RandomWeights:
    """Return a source of random weights; `changed` replaces fields of the text's configuration."""
    given = dimensions(style)
    return RandomWeights(style, given | {"text_config": given["text_config"] | changed}, seed=seed)


def model(style: str, seed: int = 0, **changed: Any) -> Any:
    """Return a model of transformers, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(source(style, seed, **changed).config()).eval()


@cache
def _tokenizer(style: str) -> Any:
    loaded = CharacterTokenizer(ALPHABET).load()
    loaded.add_special_tokens({"additional_special_tokens": [*CONTROL[style]]})
    loaded.chat_template = CHAT.replace("SHOWN", SHOWN[style])
    loaded.padding_side = "left"
    return loaded


def tokenizer(style: str) -> Any:
    """Return the tokenizer of a style: an id for each character, and one for each of its control words."""
    import copy

    return copy.deepcopy(_tokenizer(style))


def processor(style: str) -> Any:
    """Return the processor of a style; an image becomes four placeholders, or more where it is larger than 8 x 8."""
    words = tokenizer(style)
    chat = {"chat_template": words.chat_template}
    if style == "llava":
        images = by_pillow("CLIPImageProcessor")(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        kept = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return LlavaProcessor(images, words, patch_size=4, **kept, **chat)
    if style == "idefics3":
        images = by_pillow("Idefics3ImageProcessor")(size={"longest_edge": 16}, max_image_size={"longest_edge": 8})
        return Idefics3Processor(images, words, image_seq_len=4, **chat)
    images = by_pillow("Qwen2VLImageProcessor")(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    kind = Qwen2_5_VLProcessor if style == "qwen2_5_vl" else Qwen3VLProcessor
    return _images_only(kind)(images, words, **chat)


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    """Return an image of random colours; two seeds give two images."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shown(style: str, text: str, images: int = 1) -> str:
    """Return a text behind the placeholders of images, one for each, as a processor takes it."""
    return SHOWN[style] * images + text


def read(style: str, images: Any, text: str) -> tuple[list[int], dict[str, Any]]:
    """Return the ids of a row and the features of its images, as the processor makes them of this row alone."""
    pictures = [picture(width, height, seed) for width, height, seed in images]
    given = {"images": [pictures] if style == "idefics3" else pictures} if pictures else {}
    made = dict(processor(style)(text=[shown(style, text, len(pictures))], return_tensors="pt", **given))
    ids = made.pop("input_ids")[0].tolist()
    for name in ("attention_mask", "mm_token_type_ids"):
        made.pop(name, None)
    return ids, {name: values[0] if style == "idefics3" else values for name, values in made.items()}


def prompts(style: str, rows: Any, completions: Any = None) -> PromptBatch:
    """Return prompts of rows, each a list of images (width, height, seed) and a text, with reference completions."""
    ids, features = zip(*(read(style, images, text) for images, text in rows), strict=True)
    told = tokenizer(style)([*(completions or [""] * len(rows))], add_special_tokens=False)["input_ids"]
    left, right = pad_left([torch.tensor(one) for one in ids]), pad_right([torch.tensor(one).long() for one in told])
    examples = tuple(Example(text, None) for _, text in rows)
    media = Media(tuple(features)) if any(features) else None
    return PromptBatch(left[0], left[1], right[0], right[1], examples, media=media)


def models(style: str, teacher: str | None = None, **changed: Any) -> Models:
    """Return a student of a style, and a teacher of one with the same tokenizer."""
    teaches = None if teacher is None else source(teacher, 1)
    return load_models(source(style, **changed), teaches, tokenizer(style))
