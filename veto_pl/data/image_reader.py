"""Reads the images of rows by a processor of transformers: what stands for them in a text, and their features."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veto_pl.data.fingerprints import code_of, digest
from veto_pl.data.processors import find_processor, saved_processor
from veto_pl.data.same_images import check_teachers
from veto_pl.exceptions import ConfigurationError, DataError, VetoError
from veto_pl.seams import ModelSource, Picture, TokenizerSource
from veto_pl.seams.image_files import pillow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BETWEEN = "\ufdd1"
"""Stands between two images while a processor writes what stands for them: a character that no text may hold."""
_OF_TEXT = ("mm_token_type_ids", "token_type_ids")
"""What processors tell of the ids beside what the tokenizer does."""


@dataclass(frozen=True, eq=False)
class ImageReader:
    """What makes ids and features of images. The processor is loaded when the first image comes.

    Args:
        tokenizer: of the run; it reads the texts in place of the processor's own.
        sources: of the student and the tokenizer; the first that has a processor brings it.
        given: a processor of transformers in memory, in place of theirs.
        teachers: by where they are set, which read the same ids and features: their processors have to do the same.
    """

    tokenizer: PreTrainedTokenizerBase
    sources: tuple[ModelSource | TokenizerSource, ...] = ()
    given: Any = None
    teachers: Mapping[str, ModelSource] = field(default_factory=dict)

    @cached_property
    def processor(self) -> Any:
        """The processor.

        Raises:
            ConfigurationError: there is none, the tokenizer does not know its word for an image, or a teacher has
                another one.
        """
        found = find_processor(self.sources) if self.given is None else self.given
        word = getattr(found, "image_token", None)
        if not isinstance(word, str) or getattr(found, "image_processor", None) is None:
            raise ConfigurationError(
                f"Rows have images, and a `{type(found).__name__}` was given as the processor. Expected one of "
                "transformers that has an `image_processor` and names its `image_token`."
            )
        if word not in self.tokenizer.get_vocab():
            raise ConfigurationError(
                f"The processor `{type(found).__name__}` writes images as `{word}`, which the run's tokenizer does not "
                "know. Use the tokenizer of the processor under `model.tokenizer`."
            )
        check_teachers(found, self.teachers)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was loaded and compared: a process of a loader loads it anew."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"teachers": {}}

    @property
    def placeholder(self) -> str:
        """The word that stands for an image in a text that a template has written."""
        return str(self.processor.image_token)

    @cached_property
    def name(self) -> str:
        """A fingerprint of all that decides how images become ids and features."""
        import PIL
        import transformers

        told = json.dumps(self.processor.to_dict(), default=str, sort_keys=True)
        parts = (self.processor, self.processor.image_processor)
        return digest(told, *(code_of(type(part)) for part in parts), PIL.__version__, transformers.__version__)

    def files(self, model: Any) -> dict[str, str]:
        """Return the texts of the files of the processor for an export of a model; none for one that reads no images.

        Args:
            model: of transformers.
        """
        return saved_processor(self.sources) if getattr(model.config, "vision_config", None) is not None else {}

    def reading(self, images: Sequence[Picture], row: str) -> RowImages:
        """Return what stands for images in the texts of their row.

        Args:
            images: of the row, at least one.
            row: what it is called in messages.

        Raises:
            ConfigurationError: the processor does not write texts image by image.
            DataError: an image is missing or damaged, or the processor refuses it.
        """
        _ = self._nests
        with _named(row):
            text, _ = self._run(images)
            return RowImages(
                row, self.placeholder, tuple(text.split(_BETWEEN)), tuple(one.digest for one in images), self._begins,
                self._words,
            )  # fmt: skip

    def features(self, images: Sequence[Picture], digests: Sequence[str], row: str) -> dict[str, Tensor]:
        """Return what the model reads of a row's images beside the ids, by the names of its forward.

        Args:
            images: of the row, at least one.
            digests: of the images when the ids were made.
            row: what it is called in messages.

        Raises:
            DataError: an image is missing or damaged, or another one than it was.
        """
        with _named(row):
            if other := [one for one, before in zip(images, digests, strict=True) if one.digest != before]:
                raise DataError(
                    f"The image {other[0].name} has changed since its row was encoded. Start the run again, and leave "
                    "images as they are while it reads them."
                )
            _, found = self._run(images)
        return {name: value[0] if self._nests else value for name, value in found.items()}

    def _run(self, images: Sequence[Picture]) -> tuple[str, Mapping[str, Tensor]]:
        """Let the processor read images: what stands for each, with `_BETWEEN` between them, and the features."""
        opened = [one.opened() for one in images]
        try:
            return self._process(_BETWEEN.join([self.placeholder] * len(images)), opened)
        except (VetoError, MemoryError):
            raise
        except Exception as error:  # a processor is a program of a library, which may raise anything
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"The processor refuses {', '.join(one.name for one in images)}: {reason}") from error

    def _process(self, text: str, images: list[Any]) -> tuple[str, Mapping[str, Tensor]]:
        """Let the processor read a text: what it gives its tokenizer, and what it gives beside the ids."""
        heard = _Heard(self.tokenizer)
        processor = copy.copy(self.processor)
        processor.tokenizer = heard
        found = dict(processor(text=[text], images=images, return_tensors="pt"))
        names = {*heard.names, *_OF_TEXT}
        features = {name: value for name, value in found.items() if name not in names}
        if strange := next((name for name, value in features.items() if not isinstance(value, Tensor)), None):
            raise ConfigurationError(
                f"The processor `{type(processor).__name__}` gives `{strange}` as {type(features[strange]).__name__}, "
                "expected a tensor. Let it make all images equally large."
            )
        return heard.texts[0], features

    @cached_property
    def _nests(self) -> bool:
        """Whether the features of a text with two images have one axis more in front, of length one.

        The processor is tried out on the way.

        Raises:
            ConfigurationError: it does not write texts image by image.
        """
        word, blank = self.placeholder, pillow().Image.new("RGB", (64, 64))
        apart, found = self._process(_BETWEEN.join([word] * 2), [blank, blank])
        whole, _ = self._process(f"a{word}b {word}\nc", [blank, blank])
        written = apart.split(_BETWEEN)
        if len(written) != 2 or whole != f"a{written[0]}b {written[1]}\nc":
            raise ConfigurationError(
                f"The processor `{type(self.processor).__name__}` does not put each image in the place of its "
                f"`{word}`, as those of LLaVA, Qwen-VL, Gemma 3, Idefics 3 and SmolVLM do. It cannot be used here."
            )
        return len(found["pixel_values"]) == 1

    @cached_property
    def _words(self) -> frozenset[str]:
        """The words of the processor: the placeholder, and those that it puts around it."""
        return frozenset(word for word in vars(self.processor).values() if isinstance(word, str))

    @cached_property
    def _begins(self) -> str:
        """The text that the tokenizer, and so the processor, puts in front of every row; mostly none."""
        ids = self.tokenizer("a")["input_ids"]
        adds = len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id
        return str(self.tokenizer.bos_token) if adds else ""


@dataclass(frozen=True)
class RowImages:
    """The images of a row as they stand in its texts.

    Args:
        row: what the row is called in messages.
        word: stands for an image in what a template writes.
        written: what stands for each image in what the model reads.
        digests: a hash of each image.
        begins: what the tokenizer puts in front of every text by itself.
        words: control words that a prompt shows images by.
    """

    row: str
    word: str
    written: tuple[str, ...]
    digests: tuple[str, ...]
    begins: str = ""
    words: frozenset[str] = frozenset()

    def beginning(self, text: str) -> str:
        """Return the beginning of a text of the row as the model reads it."""
        first, *others = text.split(self.word)
        shown = first + "".join(f"{image}{part}" for image, part in zip(self.written, others, strict=False))
        return shown if shown.startswith(self.begins) else self.begins + shown

    def whole(self, text: str) -> str:
        """Return the whole text of the row as the model reads it.

        Raises:
            DataError: it has more or fewer places for images than the row has images.
        """
        if (places := text.count(self.word)) != len(self.written):
            raise DataError(
                f"{self.row}: the number of its images is {len(self.written)}, and that of the places for images in "
                f"its text is {places}: expected as many `{self.word}` there. A `ChatTemplate` writes them if its chat "
                f"template knows images; for a `PlainTemplate` write them yourself, as `{self.word}{{prompt}}`."
            )
        return self.beginning(text)


@contextmanager
def _named(row: str) -> Iterator[None]:
    """Name the row in errors about its images."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{row}: {error}") from error


class _Heard:
    """A tokenizer that remembers the texts that it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []
        self.names: list[str] = []

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        found = self.tokenizer(text, *args, **kwargs)
        self.texts += [text] if isinstance(text, str) else text
        self.names += found.keys()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["tokenizer"], name)
