"""Writes a trained student as a Hugging Face folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from veto_pl.core.ranks import rank_and_size
from veto_pl.core.special_ids import drop_contradictions, state_special_ids
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.model_card import model_card
from veto_pl.models.sharding import full_weights
from veto_pl.seams import LanguageModel
from veto_pl.storage.atomic import replacing
from veto_pl.storage.checksums import SUMS, read_sums, sha256_of, write_sums

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    student: LanguageModel, tokenizer: PreTrainedTokenizerBase, config: str | None, folder: str | Path
) -> Path:
    """Save the student (safetensors), the tokenizer, a model card and checksums, whole or not at all.

    An earlier export is replaced in one piece. Every rank calls it; the first one writes.

    What ends a text, begins it and fills it up is written into the configurations as the run had it.

    Args:
        student: the trained model, sharded or whole.
        tokenizer: saved beside it, with its chat template: `blueprint.exported_tokenizer`.
        config: YAML of the run, for the card.
        folder: created if need be.

    Returns:
        The folder.

    Raises:
        ConfigurationError: there is something in the folder that no export has written.
    """
    weights = full_weights(student)
    if rank_and_size()[0] == 0:
        check_folder(folder)
        with replacing(Path(folder).resolve()) as new:
            state_special_ids(student.model, tokenizer)
            drop_contradictions(student.model)
            student.model.save_pretrained(new, state_dict=None if student.shards is None else weights)
            tokenizer.save_pretrained(new)
            card = model_card(tokenizer, config, Path(folder).resolve().name)
            (new / "README.md").write_text(card, encoding="utf-8")
            files = [path for path in new.rglob("*") if path.is_file()]
            write_sums(new, {path.relative_to(new).as_posix(): sha256_of(path) for path in files})
    return Path(folder)


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
