"""A context that takes the images out of what the teacher reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.parts.contexts import behind, check_room
from veto_pl.seams import Models, Sequences, Step, TeacherContext, pad_left

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AROUND = r"<fake_token_around_image>|<global-img>|<row_\d+_col_\d+>|\[IMG\w*\]|</?img>|<IMG_CONTEXT>|<\w+_of_image>"
"""Tokens that processors write around the placeholders of an image, and that no configuration names."""


@dataclass(frozen=True)
class WithoutImages(TeacherContext):
    """The student's completion behind its prompt without the images, for a teacher that reads text only.

    The ids that stand for images by the configurations of the models leave the prompts, and so do the marks that a
    processor writes around them. The text around stays what it is, and so do rows without images.

    Args:
        around: a regular expression of whole tokens that leave the prompt of a row with images too.

    Raises:
        ConfigurationError: `around` is no regular expression, a prompt is nothing but images, or a row is too long for
            the teacher.
    """

    around: str = AROUND

    tells_nothing = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.around)
        except re.error as error:
            raise ConfigurationError(
                f"`WithoutImages.around` must be a regular expression, got `{self.around:.200}` ({error})."
            ) from error

    @classmethod
    def examples(cls) -> tuple[WithoutImages, ...]:
        return (cls(),)

    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        prompts = sequences.prompts
        if prompts is None or prompts.media is None or not prompts.media.has_images:
            return sequences
        asked = prompts.on_host
        gone = torch.tensor(sorted(self._marks(models.tokenizer, models.student.placeholders)), dtype=torch.int64)
        texts = []
        for ids, mask, images in zip(asked.input_ids, asked.attention_mask, prompts.media.of_rows, strict=True):
            text = ids[mask]
            texts.append(text[~torch.isin(text, gone)] if images else text)
            if not len(texts[-1]):
                raise ConfigurationError(
                    "`WithoutImages` leaves nothing of a prompt, and the teacher needs a token in front of the "
                    "completion. Put a text beside the images, or route such rows to a teacher that reads images."
                )
        ids, mask = (part.to(prompts.input_ids.device) for part in pad_left(texts))
        told = behind(
            replace(prompts, input_ids=ids, attention_mask=mask, media=None).rows(sequences.prompt_rows), sequences
        )
        check_room(told, models.required_teacher(), "WithoutImages")
        return told

    def _marks(self, tokenizer: PreTrainedTokenizerBase, placeholders: Iterable[int]) -> set[int]:
        pattern = re.compile(self.around)
        return {*placeholders, *(i for token, i in tokenizer.get_added_vocab().items() if pattern.fullmatch(token))}
