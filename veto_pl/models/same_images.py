"""Whether two processors make the same ids and features of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veto_pl.exceptions import ConfigurationError

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
            "and features. Take a teacher whose processor has the same settings, give it rows without images (`panel: "
            "Routed`), or take the images out of what it reads (`context: WithoutImages`)."
        )


def _settings(processor: Any) -> dict[str, Any]:
    """Return by name what a processor does with an image, defaults included."""
    own: dict[str, Any] = {name: value for name, value in processor.to_dict().items() if name not in NAMES}
    inner = {name: value for name, value in processor.image_processor.to_dict().items() if name not in NAMES}
    return {name: value for name, value in {**own, **inner}.items() if name != "image_processor"}
