"""Writes a trained student as a Hugging Face folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from veto_pl.core.ranks import rank_and_size
from veto_pl.core.special_ids import drop_contradictions, state_special_ids
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.adapter_folder import collect, read_adapter, write_adapter
from veto_pl.models.adapters import is_adapted
from veto_pl.models.merging import Rounding, plain_config, whole_weights
from veto_pl.models.model_card import LoadedAdapter, model_card
from veto_pl.models.probes import probe_logits
from veto_pl.models.read_back import check_read_back
from veto_pl.models.sharding import full_weights
from veto_pl.models.trainable import quantisation
from veto_pl.seams import LanguageModel
from veto_pl.storage.atomic import replacing
from veto_pl.storage.checksums import SUMS, read_sums, sha256_of, write_sums

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.seams import ModelSource

AdapterForm = Literal["merged", "separate"]
"""How a student with an adapter is written."""
LOST_SHARE = 0.25
"""Above this share of an adapter that rounding loses, an export warns."""
STUDENT_PREFIX = "student."
"""What the names of the student's weights begin with in a checkpoint."""
CARD_SENTENCE = "A student distilled with veto_pl."
"""What the model card of every export says."""
EXPORT_FILES = re.compile(
    r"(config|generation_config|special_tokens_map|added_tokens|tokenizer|tokenizer_config|vocab)\.json|README\.md|.*\.model"
    r"|(merges|vocab)\.txt|(additional_chat_templates/)?\w+\.jinja|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
)
"""Files of exports that have no checksums."""


def export_student(
    student: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    config: str | None,
    folder: str | Path,
    *,
    adapter: AdapterForm = "merged",
    source: ModelSource | None = None,
    processor: Mapping[str, str] | None = None,
) -> Path:
    """Save the student (safetensors), the tokenizer, a model card and checksums, whole or not at all.

    An earlier export is replaced in one piece. Every rank calls it; the first one writes.

    What ends a text, begins it and fills it up is written into the configurations as the run had it. Before the export
    takes its place, it is read again and compared with the student.

    Args:
        student: the trained model, sharded or whole.
        tokenizer: saved beside it, with its chat template: `blueprint.exported_tokenizer`.
        config: YAML of the run, for the card.
        folder: created if need be.
        adapter: `merged` writes a student with an adapter as a model without one, `separate` the adapter as peft does
            and, unless it is on the hub, its base beside it.
        source: of the student, which knows whether the base is on the hub.
        processor: the files of the processor of a student that reads images, saved beside the tokenizer.

    Returns:
        The folder.

    Raises:
        ConfigurationError: there is something in the folder that no export has written, or the export is not the
            student.
    """
    separate = adapter == "separate" and is_adapted(student.model)
    expected = probe_logits(student)
    files = collect(student, source) if separate else None
    weights = None if separate else _plain_weights(student)
    if rank_and_size()[0] == 0:
        check_folder(folder)
        with replacing(Path(folder).resolve()) as new:
            state_special_ids(student.model, tokenizer)
            drop_contradictions(student.model)
            if files is not None:
                write_adapter(student, files, new)
            else:
                _write_model(student, weights, new)
            tokenizer.save_pretrained(new)
            for name, text in (processor or {}).items():
                (new / name).write_text(text, encoding="utf-8")
            loading = None if files is None else LoadedAdapter.of(student.model, files.place)
            card = model_card(tokenizer, config, Path(folder).resolve().name, loading)
            (new / "README.md").write_text(card, encoding="utf-8")
            read = None if files is None else partial(read_adapter, new, files, student)
            check_read_back(student, expected, new, read, _remedy(student, separate=separate), weights)
            paths = [path for path in new.rglob("*") if path.is_file()]
            write_sums(new, {path.relative_to(new).as_posix(): sha256_of(path) for path in paths})
    return Path(folder)


def _remedy(student: LanguageModel, *, separate: bool) -> str:
    if not is_adapted(student.model):
        return "Its class writes other weights than it computes with."
    if separate:
        return "Export it merged (`export.adapter: merged`)."
    if quantisation(student.model.config) is not None:
        return (
            "Its quantised layers compute otherwise than the numbers that their weights stand for, as those of 8 bits "
            "do. Export the adapter apart (`export.adapter: separate`)."
        )
    return "Its layers are merged otherwise than they compute. Export the adapter apart (`export.adapter: separate`)."


def _plain_weights(student: LanguageModel) -> dict[str, Tensor]:
    """Return the weights as a model without an adapter has them. Collective: call it on every rank."""
    if not is_adapted(student.model):
        return full_weights(student)
    rounding, first = Rounding(), rank_and_size()[0] == 0
    weights = {name: w.cpu() for name, w in whole_weights(student, rounding) if first or student.shards is None}
    if rounding.share > LOST_SHARE:
        rank_zero_warn(
            f"Merging the adapter loses {rounding.share:.0%} of it: the weights of the base are {student.model.dtype}, "
            "and the sums are rounded to that. Export it apart (`export.adapter: separate`), or give the base "
            "`dtype: float32`."
        )
    return weights


def _write_model(student: LanguageModel, weights: dict[str, Tensor] | None, folder: Path) -> None:
    network = student.model
    if not is_adapted(network):
        network.save_pretrained(folder, state_dict=None if student.shards is None else weights)
        return
    with torch.device("meta"):
        plain = type(network)._from_config(plain_config(student), dtype=network.dtype)
    plain.generation_config = network.generation_config
    plain.save_pretrained(folder, state_dict=weights)


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that an export cannot replace without loss.

    Raises:
        ConfigurationError: it is a file, the current folder, a mount point, or holds what no export has written.
    """
    final = Path(folder).resolve()
    problem = None
    if os.path.lexists(final) and not final.is_dir():
        problem = "is a file"
    elif Path.cwd().is_relative_to(final) or os.path.ismount(final):
        problem = "is the current folder, around it, or a mount point, and is replaced as a whole"
    elif final.is_dir() and (others := _others(final)):
        problem = f"holds `{others[0]}`, which no export has written and which would be removed"
    if problem:
        raise ConfigurationError(f"The folder of an export, `{folder}`, {problem}. Name a new one.")


def _others(folder: Path) -> list[str]:
    """Return what is in the folder beside an earlier export; those of earlier versions have a card and no checksums."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    sums, card = read_sums(folder), folder / "README.md"
    if sums is None and card.is_file() and CARD_SENTENCE in card.read_text(encoding="utf-8", errors="replace"):
        return sorted(name for name in present if not EXPORT_FILES.fullmatch(name))
    return sorted(present - {*(sums or {}), SUMS})
