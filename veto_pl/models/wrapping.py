"""Sources around another source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from veto_pl.models.given import as_source
from veto_pl.seams import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin


@dataclass(frozen=True)
class Wrapping(ModelSource):
    """Makes something else of the model of another source, whose architecture, tokenizer and endings it has.

    A class that changes the architecture overrides `config`; one that gives the very weights hands on `skeleton` and
    `stored` too, which is not done here.

    Args:
        source: the model; a path, a hub id and a model in memory are taken as well.

    Attributes:
        trains_in_place: a model in memory is not copied, so that it has the trained weights afterwards.
    """

    source: ModelSource
    trains_in_place = False

    def __post_init__(self) -> None:
        super().__post_init__()
        setting = f"{type(self).__name__.lstrip('_')}.source"
        object.__setattr__(self, "source", as_source(self.source, setting, copied=not self.trains_in_place))

    @property
    def tokenizer_source(self) -> Mapping[str, Any] | None:
        return self.source.tokenizer_source

    @property
    def own_tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.source.own_tokenizer

    @property
    def own_processor(self) -> ProcessorMixin | None:
        return self.source.own_processor

    @property
    def processor_source(self) -> Mapping[str, Any] | None:
        return self.source.processor_source

    def config(self) -> PretrainedConfig:
        return self.source.config()

    def end_ids(self) -> tuple[int, ...]:
        return self.source.end_ids()

    def resolved(self, student: ModelSource) -> ModelSource:
        inner = self.source.resolved(student)
        return self if inner is self.source else replace(self, source=inner)
