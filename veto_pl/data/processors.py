"""Processors of images, loaded from where a model or its tokenizer lies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.seams import ModelSource, TokenizerSource

if TYPE_CHECKING:
    from transformers import ProcessorMixin

FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""What a folder of a model holds of its processor, beside the tokenizer's files."""


def find_processor(sources: Sequence[ModelSource | TokenizerSource]) -> ProcessorMixin:
    """Return the processor of the first source that has one.

    Raises:
        ConfigurationError: none has one, or none that can be loaded.
    """
    refusals = []
    for source in sources:
        if source.own_processor is not None:
            return source.own_processor
        if source.processor_source is None:
            continue
        try:
            return read_processor(source.processor_source)
        except VetoError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    raise ConfigurationError(
        "Rows have images, and `model.student` brings no processor of images. Take a student that reads images from a "
        "folder or the hub with its processor (`Pretrained`), name such a place as `PretrainedTokenizer` under "
        "`model.tokenizer`, or give `InMemory` a `processor`."
    )


def read_processor(location: Mapping[str, Any]) -> ProcessorMixin:
    """Load the processor at a hub id or in a folder.

    Args:
        location: keyword arguments for `AutoProcessor.from_pretrained`.

    Raises:
        ConfigurationError: there is none at that place, or a package is missing that it needs.
    """
    from transformers import AutoProcessor

    place = location["pretrained_model_name_or_path"]
    try:
        found: Any = _without_videos(location) or AutoProcessor.from_pretrained(**location)
    except MemoryError:
        raise
    except Exception as error:  # whatever the library raises about a place
        raise _unreadable(place, f"The library says: {' '.join(str(error).split())[:400]}") from error
    if getattr(found, "image_processor", None) is None:
        raise _unreadable(place, f"What is there is a `{type(found).__name__}`, which reads no images.")
    return found


def _unreadable(place: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"Rows have images, and no processor of images could be read from `{place[:300]}`. It must be a hub id that "
        f"can be reached, or a folder with `processor_config.json` or `preprocessor_config.json`. {reason}"
    )


def _without_videos(location: Mapping[str, Any]) -> Any:
    """Load a processor without its part for videos, which asks for torchvision where only images are read.

    None is returned where torchvision is installed, or the processor has no such part.
    """
    kind = None if find_spec("torchvision") is not None else _class_at(location)
    if kind is None or "video_processor" not in kind.get_attributes():
        return None
    return images_only(kind).from_pretrained(**location)


def _class_at(location: Mapping[str, Any]) -> Any:
    """Return the class of the processor at a place, as its files or its model name it; None for none of transformers.

    It is what `AutoProcessor` would take.
    """
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    named = [json.loads(text).get("processor_class") for text in processor_files(location).values()]
    if name := next(filter(None, named), None):
        return getattr(transformers, str(name), None)
    config = AutoConfig.from_pretrained(**location)
    return PROCESSOR_MAPPING.get(type(config), None)


def processor_files(location: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the files of a processor at a place, by their names; none where it has no processor."""
    found = {name: _text_at(location, name) for name in FILES}
    return {name: text for name, text in found.items() if text is not None}


def saved_processor(sources: Sequence[ModelSource | TokenizerSource]) -> dict[str, str]:
    """Return the texts of the files of the first processor among some sources, for an export; none without one."""
    for source in sources:
        if source.own_processor is not None:
            with tempfile.TemporaryDirectory() as folder:
                source.own_processor.save_pretrained(folder)
                files = [Path(folder, name) for name in FILES]
                return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}
        if source.processor_source is not None and (found := processor_files(source.processor_source)):
            return found
    return {}


def stored_chat_template(location: Mapping[str, Any]) -> str | None:
    """Return the chat template that a place has for its processor alone, as earlier models with images do."""
    text = _text_at(location, "chat_template.json")
    template = None if text is None else json.loads(text).get("chat_template")
    return template if isinstance(template, str) else None


def _text_at(location: Mapping[str, Any], name: str) -> str | None:
    from transformers.utils import cached_file

    place, revision = location["pretrained_model_name_or_path"], location.get("revision")
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(place, name, revision=revision, **quiet)
    return None if file is None else Path(file).read_text(encoding="utf-8")


@lru_cache(maxsize=16)
def images_only(kind: Any) -> Any:
    """Return a class of processors without its part for videos."""
    parts: list[str] = kind.get_attributes()

    def attributes(cls: Any) -> list[str]:
        return [name for name in parts if name != "video_processor"]

    def arguments(cls: Any, *args: Any, **kwargs: Any) -> list[Any]:
        loaded: list[Any] = kind._get_arguments_from_pretrained.__func__(cls, *args, **kwargs)
        loaded.insert(parts.index("video_processor"), None)
        return loaded

    body = {"get_attributes": classmethod(attributes), "_get_arguments_from_pretrained": classmethod(arguments)}
    made: Any = type(kind.__name__, (kind,), {**body, "__module__": kind.__module__})
    return made
