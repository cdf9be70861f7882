"""Writes a trained student as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from veto_pl.checkpoint_io import read_checkpoint
from veto_pl.exceptions import ConfigurationError
from veto_pl.model_card import model_card
from veto_pl.models.sharding import full_weights
from veto_pl.models.tokenizers import with_chat_template
from veto_pl.sharded_checkpoint import is_sharded, plain_values, read_whole
from veto_pl.special_ids import drop_contradictions, state_special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM

STUDENT = "student."
"""What the names of the student's weights begin with in a checkpoint."""
CHAT_TEMPLATE = "veto_pl_chat_template"
"""Where a checkpoint says how a message of the user becomes a prompt of the run."""


def export_student(
    student: CausalLM, tokenizer: PreTrainedTokenizerBase, config: str | None, folder: str | Path
) -> Path:
    """Saves the student (safetensors), the tokenizer and a model card. Every rank calls it; the first one writes.

    What ends a text, begins it and fills it up is written into the configurations as the run had it.

    Args:
        student: the trained model, sharded or whole.
        tokenizer: saved beside it, with its chat template; `with_chat_template` gives it that of the run.
        config: YAML of the run, for the card.
        folder: created if need be.

    Returns:
        The folder.
    """
    folder = Path(folder)
    weights = full_weights(student)
    if student.shards is not None and not student.shards.first:
        return folder
    state_special_ids(student.model, tokenizer)
    drop_contradictions(student.model)
    student.model.save_pretrained(folder, state_dict=None if student.shards is None else weights)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(tokenizer, config, folder.resolve().name), encoding="utf-8")
    return folder


def export_checkpoint(checkpoint: str | Path, folder: str | Path) -> Path:
    """Rebuilds the student of a Lightning checkpoint from the configuration inside, and exports it.

    Args:
        checkpoint: a `.ckpt` file, or folder of a sharded run, that the command line started.
        folder: where to write.

    Raises:
        ConfigurationError: the file is missing, or holds no configuration or no student.
    """
    from veto_pl.cli import module_from_config
    from veto_pl.models.assemble import load_student

    config, read_weights, chat_template = _read(Path(checkpoint))
    if config is None:
        raise ConfigurationError(
            f"`{checkpoint}` holds no configuration, so its student cannot be rebuilt. Export it from Python with "
            "`veto_pl.export.export_student`, or train it through `veto-pl fit`."
        )
    module = module_from_config(config)
    student = load_student(module.student_source, module.tokenizer, empty=True)
    student.load_state_dict(read_weights())
    return export_student(student, with_chat_template(module.tokenizer, chat_template), config, folder)


def _read(checkpoint: Path) -> tuple[str | None, Callable[[], dict[str, Tensor]], Any]:
    """The run's configuration, how to get the student's weights, and the chat template of the run's prompts."""
    if is_sharded(checkpoint):
        values = plain_values(checkpoint)
        config, template = values.get("veto_pl_config"), values.get(CHAT_TEMPLATE)
        return config, lambda: read_whole(checkpoint, f"state_dict.{STUDENT}"), template
    state = read_checkpoint(checkpoint)
    weights = {k.removeprefix(STUDENT): v for k, v in state["state_dict"].items() if k.startswith(STUDENT)}
    return state.get("veto_pl_config"), lambda: weights, state.get(CHAT_TEMPLATE)
