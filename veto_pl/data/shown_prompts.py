"""Prompts as people read them: a row's images by their sizes, not by the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from veto_pl.exceptions import VetoError
from veto_pl.seams import Example, Picture, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shown_prompts(batch: PromptBatch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text of each prompt; in the place of an image stands its size, as `[image 28x28]`."""
    ids = [row[mask].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    texts: list[str] = tokenizer.batch_decode(ids)
    for i, example in enumerate(batch.examples):
        if example.images:
            texts[i] = _shown(example, _template_text(example, batch, tokenizer), texts[i], ids[i], tokenizer)
    return texts


def image_label(image: Picture) -> str:
    """Return what stands for an image in a text."""
    try:
        width, height = image.size
    except VetoError:  # it is gone; who reads the text can do nothing about that
        return "[image]"
    return f"[image {width}x{height}]"


def image_names(example: Example) -> list[str]:
    """Return what tells the images of a row from others: the path of each, or a hash of its bytes."""
    return [image.path or f"blake2b:{image.digest}" for image in example.images]


def _template_text(example: Example, batch: PromptBatch, tokenizer: PreTrainedTokenizerBase) -> str:
    return "" if batch.template is None else batch.template(example, tokenizer)


def _shown(example: Example, text: str, read: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template's text with labels in the place of the images.

    A control word that stands there once for each image, and in the ids more often than any other, is the word for
    one. Where there is none, the labels stand in front of the whole.
    """
    labels = list(map(image_label, example.images))
    vocabulary = tokenizer.get_vocab()
    words = [str(word) for word in tokenizer.added_tokens_decoder.values() if text.count(str(word)) == len(labels)]
    if not words:
        return " ".join([*labels, read])
    word = max(words, key=lambda one: (ids.count(vocabulary.get(one, -1)), "image" in one))
    first, *others = text.split(word)
    return first + "".join(f"{label}{part}" for label, part in zip(labels, others, strict=True))
