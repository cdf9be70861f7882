"""Makes prompts of rows anew, with another text in the place of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.data.image_reader import ImageReader, RowImages
from veto_pl.data.tokenising import tokenise_prompts
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Example, PromptBatch, Template, pad_left

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_READER = "Give it `images`: `Models.images` of a run, or an `ImageReader`."
"""What to do where nothing reads images."""


def retold(
    prompts: PromptBatch,
    texts: Sequence[str | None],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    name: str,
    *,
    tells_more: bool = True,
    images: ImageReader | None = None,
) -> PromptBatch:
    """Return the prompts of the same examples, with other texts.

    Args:
        prompts: B prompts.
        texts: for each example in the place of its prompt; None keeps the prompt as it is.
        tokenizer: of the models.
        template: makes prompts of the texts; None takes that of the data.
        name: of the class whose hint this is, for messages.
        tells_more: whether no text may come to what the plain prompt is.
        images: reads the images of the rows, which stay what they are: `Models.images`.

    Raises:
        ConfigurationError: the template does not show the text, or makes an empty one of it, or there is none, or rows
            have images and nothing reads them.
    """
    template = prompts.template if template is None else template
    if template is None:
        raise ConfigurationError(f"`{name}` must make new prompts, but the batch has no template. Set `.template`.")
    before = [ids[mask].cpu() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
    others = [text is not None and text != e.prompt for e, text in zip(prompts.examples, texts, strict=True)]
    anew = [
        replace(example, prompt=text or "")
        for example, text, other in zip(prompts.examples, texts, others, strict=True)
        if other
    ]
    if images is None:
        changed = prompts.rows(torch.tensor([i for i, other in enumerate(others) if other], dtype=torch.int64))
        changed.refuse_images(f"`{name}` makes the text of a prompt anew, and nothing reads images", NO_READER)
    seen = [] if images is None else [_seen(images, example, name) for example in anew]
    encoded = iter(tokenise_prompts(anew, template, tokenizer, seen))
    told = [
        _checked(torch.tensor(next(encoded)[0], dtype=torch.int64), old, name, tells_more=tells_more) if other else old
        for other, old in zip(others, before, strict=True)
    ]
    stacked, mask = (part.to(prompts.input_ids.device) for part in pad_left(told))
    return replace(prompts, input_ids=stacked, attention_mask=mask)


def _seen(images: ImageReader, example: Example, name: str) -> RowImages | None:
    """Return what stands for the images of a row in its texts; None for a row without."""
    return images.reading(example.images, f"`{name}` ({example.prompt[:60]!r})") if example.images else None


def _checked(told: Tensor, plain: Tensor, name: str, *, tells_more: bool) -> Tensor:
    """Return the ids of a prompt that was made anew; raise `ConfigurationError` for none, or those of the plain one."""
    if not len(told):
        raise ConfigurationError(
            f"The hint of `{name}` makes an empty text, and the teacher needs a token in front of the completion. "
            "Let it say `{prompt}` at least."
        )
    if tells_more and torch.equal(told, plain):
        raise ConfigurationError(
            f"The hint of `{name}` does not reach the teacher: the template of the data makes the same text of it "
            f"as of the plain prompt. Use `{{prompt}}` there, or set the `template` of `{name}`."
        )
    return told
