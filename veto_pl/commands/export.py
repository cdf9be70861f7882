"""`veto-pl export`: the student of a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veto_pl.cli.build import built_from
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_student
from veto_pl.models.blueprint import BLUEPRINT, rebuild_student, with_run_template
from veto_pl.models.export_folder import STUDENT_PREFIX, check_folder, export_student
from veto_pl.models.tying import differing_names, tied, untie
from veto_pl.storage.checkpoint_io import read_checkpoint
from veto_pl.storage.checkpoint_place import check_checkpoint
from veto_pl.storage.sharded_checkpoint import check_sharded, is_sharded, plain_values, read_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM


def export_checkpoint(
    checkpoint: str | Path, folder: str | Path, config: str | None = None, *, trust_remote_code: bool = False
) -> Path:
    """Rebuild the student of a checkpoint and export it. No class named in the checkpoint is built or run.

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
        student, tokenizer = _student_of_config(config)
    elif settings.get(BLUEPRINT) is None:
        raise ConfigurationError(
            f"`{checkpoint}` does not describe its student; an earlier version has written it. Name the configuration "
            "of its run: `veto-pl export CHECKPOINT FOLDER --config runs/mine/config.yaml`."
        )
    else:
        student, tokenizer = rebuild_student(
            settings[BLUEPRINT], Path(checkpoint), tensors=len(weights), trust_remote_code=trust_remote_code
        )
    _load_weights(student, weights, checkpoint)
    written = settings.get("veto_pl_config")
    return export_student(student, tokenizer, config or (written if isinstance(written, str) else None), folder)


def _student_of_config(config: str) -> tuple[CausalLM, PreTrainedTokenizerBase]:
    module, data = built_from(config)
    student = load_student(module.student_source, module.tokenizer, empty=True)
    return student, with_run_template(data.row_template, module.tokenizer)


def _load_weights(student: CausalLM, weights: dict[str, Tensor], checkpoint: str | Path) -> None:
    """Load the weights into the student; matrices that differ are untied even if the configuration ties them."""
    inside = {name.removeprefix("model."): weight for name, weight in weights.items()}
    try:
        untie(student.model, [name for names in tied(student.model) for name in differing_names(names, inside)])
        for name, weight in student.named_parameters():
            weight.data = weight.data.to(weights.get(name, weight).dtype)
        student.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"The weights of `{checkpoint}` are not those of its student: {' '.join(str(error).split()):.300}. The "
            "checkpoint is damaged, or `--config` is that of another run."
        ) from error


def _read(checkpoint: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Return the settings in a checkpoint, and the student's weights by name."""
    if is_sharded(checkpoint):
        folder = Path(checkpoint)
        check_sharded(folder)
        return plain_values(folder), read_whole(folder, f"state_dict.{STUDENT_PREFIX}")
    state = read_checkpoint(checkpoint)
    return state, {
        k.removeprefix(STUDENT_PREFIX): v for k, v in state["state_dict"].items() if k.startswith(STUDENT_PREFIX)
    }
