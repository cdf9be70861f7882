"""`veto-pl export`: the student of a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veto_pl.cli.build import built_from
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_student
from veto_pl.models.blueprint import BLUEPRINT, rebuild_processor, rebuild_student, rebuild_tokenizer, with_run_template
from veto_pl.models.checkpoint_weights import load_stored, weights_in
from veto_pl.models.described import rebuilt
from veto_pl.models.export_folder import STUDENT_PREFIX, AdapterForm, check_folder, export_student
from veto_pl.models.tying import differing_names, tied, untie
from veto_pl.storage.checkpoint_io import read_checkpoint
from veto_pl.storage.checkpoint_place import check_checkpoint
from veto_pl.storage.sharded_checkpoint import check_sharded, is_sharded, plain_values, read_whole
from veto_pl.training.adapter_checkpoints import ADAPTER, check_base
from veto_pl.training.checkpointed import EXPORTED_BY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.data.image_reader import ImageReader
    from veto_pl.models.causal_lm import CausalLM
    from veto_pl.seams import ModelSource


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    config: str | None = None,
    *,
    trust_remote_code: bool = False,
    adapter: AdapterForm = "merged",
) -> Path:
    """Rebuild the student of a checkpoint and export it. No class named in the checkpoint is built or run.

    Args:
        checkpoint: a `.ckpt` file, or folder of a sharded run.
        folder: where to write.
        config: YAML of the run; its student is made, instead of the one that the checkpoint describes.
        trust_remote_code: whether code that belongs to the model may run.
        adapter: how a student with an adapter is written.

    Raises:
        ConfigurationError: the checkpoint is missing or damaged, or describes no student that can be made.
    """
    check_checkpoint(str(checkpoint))
    check_folder(folder)
    settings, weights = read_student(checkpoint)
    if command := settings.get(EXPORTED_BY):
        raise ConfigurationError(f"`{checkpoint}` is exported by another command: `{command} CHECKPOINT FOLDER`.")
    entry = settings.get(ADAPTER)
    if config is not None:
        student, tokenizer, source, images = _student_of_config(config, empty=entry is None)
        processor = images.files(student.model)
    elif settings.get(BLUEPRINT) is None:
        raise ConfigurationError(
            f"`{checkpoint}` does not describe its student; an earlier version has written it. Name the configuration "
            "of its run: `veto-pl export CHECKPOINT FOLDER --config runs/mine/config.yaml`. (A denoising student's is "
            "written by `DenoisingModule.load_from_checkpoint(CHECKPOINT).export(FOLDER)`.)"
        )
    elif entry is not None:
        source = _source_of(entry, checkpoint, trust_remote_code)
        tokenizer = rebuild_tokenizer(settings[BLUEPRINT], Path(checkpoint))
        student = load_student(source, tokenizer)
    else:
        source = None
        student, tokenizer = rebuild_student(
            settings[BLUEPRINT], Path(checkpoint), tensors=len(weights), trust_remote_code=trust_remote_code
        )
    if config is None:
        processor = rebuild_processor(settings[BLUEPRINT])
    check_base(student, entry)
    _load_weights(student, weights, checkpoint)
    written = settings.get("veto_pl_config")
    told = config or (written if isinstance(written, str) else None)
    return export_student(student, tokenizer, told, folder, adapter=adapter, source=source, processor=processor)


def _student_of_config(
    config: str, *, empty: bool
) -> tuple[CausalLM, PreTrainedTokenizerBase, ModelSource, ImageReader]:
    """Return the student that a run's YAML describes, with its weights unless the checkpoint has them all."""
    module, data = built_from(config)
    student = load_student(module.student_source, module.tokenizer, empty=empty)
    tokenizer = with_run_template(data.row_template, module.tokenizer)
    return student, tokenizer, module.student_source, module.images


def _source_of(entry: Any, checkpoint: str | Path, trust_remote_code: bool) -> ModelSource:
    """Return where the student of an adapter's checkpoint comes from.

    Raises:
        ConfigurationError: it is no source of this package, or the checkpoint is damaged.
    """
    description = entry.get("student") if isinstance(entry, Mapping) else None
    if description is None:
        raise ConfigurationError(
            f"`{checkpoint}` holds an adapter, and its base comes from a source that is not of this package. Name the "
            "configuration of its run: `veto-pl export CHECKPOINT FOLDER --config runs/mine/config.yaml`."
        )
    return rebuilt(description, trust_remote_code=trust_remote_code)


def _load_weights(student: CausalLM, weights: dict[str, Tensor], checkpoint: str | Path) -> None:
    """Load the weights into the student; matrices that differ are untied even if the configuration ties them."""
    inside = {name.removeprefix("model."): weight for name, weight in weights.items()}
    try:
        untie(student.model, [name for names in tied(student.model) for name in differing_names(names, inside)])
        for name, weight in student.named_parameters():
            weight.data = weight.data.to(weights.get(name, weight).dtype)
        load_stored(student, weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"The weights of `{checkpoint}` are not those of its student: {' '.join(str(error).split()):.300}. The "
            "checkpoint is damaged, or `--config` is that of another run."
        ) from error


def read_student(checkpoint: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Return the settings in a checkpoint, and the student's weights by name."""
    if is_sharded(checkpoint):
        folder = Path(checkpoint)
        check_sharded(folder)
        return plain_values(folder), read_whole(folder, f"state_dict.{STUDENT_PREFIX}")
    state = read_checkpoint(checkpoint)
    return state, weights_in(state)
