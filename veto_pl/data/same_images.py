"""Whether two processors make the same ids and features of an image."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from veto_pl.core.architectures import reads_images
from veto_pl.data.processors import find_processor
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.seams import ModelSource

if TYPE_CHECKING:
    from transformers import ProcessorMixin

NAMES = {"image_processor_type", "processor_class", "auto_map", "chat_template", "tokenizer", "video_processor"}
"""What a processor says beside what it does with an image."""


def check_processors(student: ProcessorMixin, teacher: ProcessorMixin, setting: str) -> None:
    """Refuse a teacher whose processor makes other ids or features of an image than the student's.

    Args:
        student: its processor.
        teacher: the teacher's.
        setting: where the teacher is set, for errors.

    Raises:
        ConfigurationError: their settings differ.
    """
    ours, theirs = _settings(student), _settings(teacher)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        said = ", ".join(f"`{name}` is {theirs.get(name)} instead of {ours.get(name)}" for name in differing[:4])
        raise ConfigurationError(
            f"`{setting}` has another processor of images than the student: {said}. A teacher reads the student's ids "
            "and features: take one whose processor has the same settings."
        )


def check_teachers(student: ProcessorMixin, teachers: Mapping[str, ModelSource]) -> None:
    """Compare the processor of the student with those of teachers that read images, as far as they bring one.

    Args:
        student: its processor.
        teachers: by where they are set.

    Raises:
        ConfigurationError: their settings differ.
    """
    for setting, source in teachers.items():
        theirs = student
        with suppress(VetoError):  # whoever loads the teacher says what is wrong with it
            theirs = find_processor([source]) if reads_images(source.config()) else student
        check_processors(student, theirs, setting)


def _settings(processor: Any) -> dict[str, Any]:
    """Return by name what a processor does with an image, defaults included."""
    own: dict[str, Any] = {name: value for name, value in processor.to_dict().items() if name not in NAMES}
    inner = {name: value for name, value in processor.image_processor.to_dict().items() if name not in NAMES}
    return {name: value for name, value in {**own, **inner}.items() if name != "image_processor"}
