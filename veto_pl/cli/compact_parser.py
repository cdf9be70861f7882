"""The parser of configurations: what they may hold, how they are printed, and how mistakes in them are told."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import yaml
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from veto_pl.callbacks import (
    Answers,
    Budget,
    Checkpoints,
    Diagnostics,
    DistillationProgress,
    Export,
    Guards,
    SampleTable,
)
from veto_pl.cli.parser_errors import explained, with_suggestion
from veto_pl.data import PromptDataModule
from veto_pl.module import DistillationModule

LINE_WIDTH = 110
"""Characters of a line of printed YAML."""
ROOTS: dict[str, type | None] = {
    "model": DistillationModule,
    "data": PromptDataModule,
    "trainer": Trainer,
    "checkpoint": Checkpoints,
    "samples": SampleTable,
    "diagnostics": Diagnostics,
    "guards": Guards,
    "export": Export,
    "answers": Answers,
    "budget": Budget,
    "progress": DistillationProgress,
} | dict.fromkeys(("seed_everything", "run_dir", "validate_first", "threads", "ckpt_path", "weights_only"))
"""What a configuration may hold, and the classes that stand behind it."""


class CompactDumper(yaml.SafeDumper):
    """Writes mappings and lists in lines, not one entry per line, where they are short or hold plain values only."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Return the node, in flow style where the mapping is short or holds plain values only."""
        flat = not any(isinstance(value, dict | list) for value in mapping.values())
        return super().represent_mapping(tag, mapping, flow_style=flat or len(str(mapping)) < LINE_WIDTH)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Return the node, in flow style where the sequence is short."""
        return super().represent_sequence(tag, sequence, flow_style=len(str(sequence)) < LINE_WIDTH)


class PlainTypes(DefaultHelpFormatter):
    """Shows the type of a number without its bound, which the text of the setting has in words."""

    def _get_type_str(self, action: Any) -> str | None:
        shown = super()._get_type_str(action)
        return shown and re.sub(r"Annotated\[(\w+), Interval\([^)]*\)\]", r"\1", shown)


class CompactParser(LightningArgumentParser):
    """Prints configurations so compactly that an algorithm fits on a screen, and mistakes in them in a sentence.

    Attributes:
        roots: what a configuration may hold, and the classes that stand behind it.
    """

    roots: Mapping[str, type | None] = ROOTS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings: dict[str, Any] = {"formatter_class": PlainTypes, "allow_abbrev": False, **kwargs}
        super().__init__(*args, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `ConfigurationError` with the path of the mistake and a suggestion, instead of printing the usage."""
        if not self.exit_on_error:  # a parser inside another one, which adds where it was
            super().error(with_suggestion(message, (action.dest for action in self._actions)), ex)
        raise explained(with_suggestion(message, _settings(self.roots))) from ex

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the configuration as YAML; comments at its head are kept."""
        text: str = super().dump(*args, **kwargs)
        header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        body: str = yaml.dump(yaml.safe_load(text), Dumper=CompactDumper, sort_keys=False, width=LINE_WIDTH)
        return header + body


def _settings(roots: Mapping[str, type | None]) -> Iterator[str]:
    """Yield the top-level settings, and those of their classes as dotted paths."""
    for root, owner in roots.items():
        yield root
        if owner is not None:
            yield from (f"{root}.{name}" for name in inspect.signature(owner).parameters)
