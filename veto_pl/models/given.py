"""Models and tokenizers as they may be given: a source, a path, a hub id, or an object of transformers in memory."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from veto_pl.core.mistakes import shorten, wrong_kind
from veto_pl.core.seeds import seeded
from veto_pl.core.special_ids import listed_ids
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.loading import Pretrained
from veto_pl.models.tokenizers import PretrainedTokenizer
from veto_pl.seams import ModelSource, ScoreSource, TeacherSource, TokenizerSource
from veto_pl.seams.teacher_names import TEACHER, setting_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

ROLES = ("student", TEACHER, "reference")
"""Names that no teacher of `model.teachers` can have."""
_given_at: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""By model: the sum of the versions of its weights when a run was given it last."""


@dataclass(frozen=True, eq=False)
class InMemory(ModelSource):
    """A transformers model that is in memory already, from Python.

    A student is trained in place: the object holds the trained weights afterwards. A second run that is given the same
    object goes on from there, and says so.

    Args:
        model: any decoder-only model of transformers; one that peft has wrapped is unwrapped.
        tokenizer: of transformers, or the processor of a model that reads images; None where the run has one.
        copied: hand out copies, and leave the object as it is.
    """

    model: Any
    tokenizer: Any = field(default=None)
    copied: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        from transformers import PreTrainedModel

        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if not isinstance(inner, PreTrainedModel):
            expected = "a model of transformers; a folder or a hub id is a `Pretrained`"
            raise wrong_kind(self.model, "InMemory.model", expected)
        object.__setattr__(self, "model", inner)

    @classmethod
    def examples(cls) -> tuple[InMemory, ...]:
        return ()

    @property
    def own_tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self.tokenizer is None else as_tokenizer(self.tokenizer, "InMemory.tokenizer").load()

    @property
    def own_processor(self) -> ProcessorMixin | None:
        return self.tokenizer if is_processor(self.tokenizer) else None

    def config(self) -> PretrainedConfig:
        return copy.deepcopy(self.model.config)

    def load(self) -> PreTrainedModel:
        if self.copied:
            return copy.deepcopy(self.model)
        version = sum(weight._version for weight in self.model.parameters())
        if _given_at.setdefault(self.model, version) != version:
            warnings.warn(
                f"The {type(self.model).__name__} in memory was written to since a run was given it last, so this one "
                "begins with those weights. To begin with the first ones, load it anew, or give every run "
                "`InMemory(model, copied=True)`.",
                stacklevel=2,
            )
        _given_at[self.model] = version
        return self.model

    def skeleton(self) -> PreTrainedModel:
        return type(self.model)(self.config())

    def end_ids(self) -> tuple[int, ...]:
        settings = self.model.generation_config if self.model.can_generate() else self.model.config
        return listed_ids(getattr(settings, "eos_token_id", None))


@dataclass(frozen=True, eq=False)
class InMemoryTokenizer(TokenizerSource):
    """A tokenizer of transformers that is in memory already, from Python. A run gets a copy.

    Args:
        tokenizer: of transformers, or a processor, which has one.
    """

    tokenizer: Any

    @classmethod
    def examples(cls) -> tuple[InMemoryTokenizer, ...]:
        return ()

    @property
    def own_processor(self) -> ProcessorMixin | None:
        return self.tokenizer if is_processor(self.tokenizer) else None

    def load(self) -> PreTrainedTokenizerBase:
        tokenizer = self.tokenizer.tokenizer if is_processor(self.tokenizer) else self.tokenizer
        loaded: PreTrainedTokenizerBase = copy.deepcopy(tokenizer)
        if loaded.chat_template is None and is_processor(self.tokenizer):
            loaded.chat_template = self.tokenizer.chat_template
        return loaded


def as_teacher(given: Any, setting: str) -> TeacherSource:
    """Return where a teacher comes from that may be given as a source of scores, or as any model (`as_source`)."""
    return given if isinstance(given, ScoreSource) else as_source(given, setting)


def as_source(given: Any, setting: str, *, copied: bool = False) -> ModelSource:
    """Return the source of a model that may be given as one, as a path or hub id, or as an object of transformers.

    Args:
        given: by the user.
        setting: where, for errors.
        copied: leave an object in memory as it is.

    Raises:
        ConfigurationError: it is none of these.
    """
    if isinstance(given, ModelSource):
        return given
    if isinstance(given, str | os.PathLike):
        return Pretrained(os.fspath(given))
    if isinstance(given, nn.Module) and (hasattr(given, "config") or hasattr(given, "get_base_model")):
        return InMemory(given, copied=copied)
    raise wrong_kind(given, setting, "a `ModelSource`, a path, a hub id, or a model of transformers")


def sources_of(
    student: Any, teacher: Any, reference: Any
) -> tuple[ModelSource, TeacherSource | None, ModelSource | None]:
    """Return the sources of the models of a run, each given in any way; teacher and reference know the student's.

    Seeds that were left open are the run's from here on.
    """
    trained = seeded(as_source(student, "model.student"))
    taught = None if teacher is None else seeded(as_teacher(teacher, "model.teacher")).resolved(trained)
    beside = None if reference is None else seeded(as_source(reference, "model.reference")).resolved(trained)
    return trained, taught, beside


def teachers_of(
    teacher: TeacherSource | None, named: Mapping[str, Any], student: ModelSource
) -> dict[str, TeacherSource]:
    """Return the sources of all teachers by name, `model.teacher` first, under the name `teacher`.

    Args:
        teacher: of `model.teacher`, or None.
        named: of `model.teachers`, each given in any way.
        student: whose source they know.

    Raises:
        ConfigurationError: a name has other characters than letters, digits, `-` and `_`, or is that of another role.
    """
    for name in named:
        if re.fullmatch(r"[\w-]+", name) is None or name in ROLES:
            raise ConfigurationError(
                f"`model.teachers`: given the name {shorten(name, 60)!r}, expected letters, digits, `-` and `_`, and "
                f"none of {', '.join(f'`{role}`' for role in ROLES)}. Rename it, in the data too."
            )
    first: dict[str, TeacherSource] = {} if teacher is None else {TEACHER: teacher}
    others = {name: seeded(as_teacher(one, setting_of(name))).resolved(student) for name, one in named.items()}
    return first | others


def as_tokenizer(given: Any, setting: str) -> TokenizerSource:
    """Return the source of a tokenizer that may be given as one, as a path or hub id, or as an object of transformers.

    Raises:
        ConfigurationError: it is none of these.
    """
    if isinstance(given, TokenizerSource):
        return given
    if isinstance(given, str | os.PathLike):
        return PretrainedTokenizer(os.fspath(given))
    from transformers import PreTrainedTokenizerBase

    if isinstance(given, PreTrainedTokenizerBase) or is_processor(given):
        return InMemoryTokenizer(given)
    raise wrong_kind(given, setting, "a `TokenizerSource`, a path, a hub id, or a tokenizer of transformers")


def is_processor(given: Any) -> bool:
    """Return whether something is a processor of transformers, which reads images and has a tokenizer."""
    return hasattr(given, "image_processor") and hasattr(given, "tokenizer")


def named_place(kind: object, given: object) -> Mapping[str, Any] | None:
    """Return the class and settings that a path or hub id stands for in a configuration; None for any other text.

    A path has a slash, or a dot at its beginning, or is a folder that is there; a bare name is that of a class.

    Args:
        kind: the annotation of the setting.
        given: its value.
    """
    models = dict.fromkeys((ModelSource, TeacherSource), Pretrained)
    places: dict[Any, type] = {**models, TokenizerSource: PretrainedTokenizer}
    owner = places.get(kind)
    if owner is None or not isinstance(given, str) or not _is_place(given):
        return None
    return {"class_path": f"veto_pl.models.{owner.__name__}", "init_args": {"path": given}}


def _is_place(text: str) -> bool:
    if text.endswith((".yaml", ".yml", ".json")) or "\n" in text or text.startswith("{"):
        return False  # a file, or a text, with the settings of a class
    return "/" in text or text.startswith(("~", "./", "..")) or Path(text).is_dir()
