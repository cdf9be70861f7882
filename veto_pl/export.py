"""Writes a trained student as a Hugging Face folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veto_pl.blueprint import BLUEPRINT, built, by_template
from veto_pl.checkpoint_io import beside, read_checkpoint
from veto_pl.checkpoint_place import check_checkpoint
from veto_pl.checksums import SUMS, read_sums, sha256_of, write_sums
from veto_pl.exceptions import ConfigurationError
from veto_pl.model_card import model_card
from veto_pl.models.sharding import full_weights
from veto_pl.models.tying import apart, tied, untie
from veto_pl.ranks import place
from veto_pl.sharded_checkpoint import check_sharded, is_sharded, plain_values, read_whole
from veto_pl.special_ids import drop_contradictions, state_special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM

STUDENT = "student."
"""What the names of the student's weights begin with in a checkpoint."""
EARLIER = "A student distilled with veto_pl."
"""What the model card of every export says."""
WRITTEN = re.compile(
    r"(config|generation_config|special_tokens_map|added_tokens|tokenizer|tokenizer_config|vocab)\.json|README\.md|.*\.model"
    r"|(merges|vocab)\.txt|(additional_chat_templates/)?\w+\.jinja|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
)
"""Files of exports that have no checksums."""


def export_student(
    student: CausalLM, tokenizer: PreTrainedTokenizerBase, config: str | None, folder: str | Path
) -> Path:
    """Saves the student (safetensors), the tokenizer, a model card and checksums, whole or not at all.

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
    if place()[0] == 0:
        check_folder(folder)
        with beside(Path(folder).resolve()) as new:
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
    """Refuses a folder that an export cannot take the place of without loss.

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
    """What is in it beside an earlier export; those of earlier versions have a card and no checksums."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    sums, card = read_sums(folder), folder / "README.md"
    if sums is None and card.is_file() and EARLIER in card.read_text(encoding="utf-8", errors="replace"):
        return sorted(name for name in present if not WRITTEN.fullmatch(name))
    return sorted(present - {*(sums or {}), SUMS})


def export_checkpoint(
    checkpoint: str | Path, folder: str | Path, config: str | None = None, *, trust_remote_code: bool = False
) -> Path:
    """Rebuilds the student of a checkpoint and exports it. Nothing in the checkpoint names what is built.

    Args:
        checkpoint: a `.ckpt` file, or folder of a sharded run.
        folder: where to write.
        config: YAML of the run; its student is made, instead of the one that the checkpoint describes.
        trust_remote_code: whether code that belongs to the model may run.

    Raises:
        ConfigurationError: the checkpoint is missing or damaged, or describes no student that can be made.
    """
    check_checkpoint(str(checkpoint))
    check_folder(folder)
    settings, weights = _read(checkpoint)
    if config is not None:
        student, tokenizer = _of_config(config)
    elif settings.get(BLUEPRINT) is None:
        raise ConfigurationError(
            f"`{checkpoint}` does not describe its student; an earlier version has written it. Name the configuration "
            "of its run: `veto-pl export CHECKPOINT FOLDER --config runs/mine/config.yaml`."
        )
    else:
        student, tokenizer = built(
            settings[BLUEPRINT], Path(checkpoint), tensors=len(weights), trust_remote_code=trust_remote_code
        )
    _fill(student, weights, checkpoint)
    told = settings.get("veto_pl_config")
    return export_student(student, tokenizer, config or (told if isinstance(told, str) else None), folder)


def _of_config(config: str) -> tuple[CausalLM, PreTrainedTokenizerBase]:
    from veto_pl.cli import built_from
    from veto_pl.models.assemble import load_student

    module, data = built_from(config)
    student = load_student(module.student_source, module.tokenizer, empty=True)
    return student, by_template(data.template, module.tokenizer)


def _fill(student: CausalLM, weights: dict[str, Tensor], checkpoint: str | Path) -> None:
    """Two matrices that the configuration ties stay apart where they were trained apart."""
    inside = {name.removeprefix("model."): weight for name, weight in weights.items()}
    try:
        untie(student.model, [name for names in tied(student.model) for name in apart(names, inside)])
        for name, weight in student.named_parameters():
            weight.data = weight.data.to(weights.get(name, weight).dtype)
        student.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"The weights of `{checkpoint}` are not those of its student: {' '.join(str(error).split()):.300}. The "
            "checkpoint is damaged, or `--config` is that of another run."
        ) from error


def _read(checkpoint: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The settings beside the weights, and the student's weights."""
    if is_sharded(checkpoint):
        folder = Path(checkpoint)
        check_sharded(folder)
        return plain_values(folder), read_whole(folder, f"state_dict.{STUDENT}")
    state = read_checkpoint(checkpoint)
    return state, {k.removeprefix(STUDENT): v for k, v in state["state_dict"].items() if k.startswith(STUDENT)}
