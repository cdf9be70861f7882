"""What a checkpoint says about its student beside the weights: the files of a model folder, as plain text.

An export needs the architecture, the settings of generation and the tokenizer, as they are in the run. As files they
need nothing of the source of the student, so the export runs on any machine; and what is built is decided by the
registry of architectures of transformers, not by the checkpoint.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.special_ids import drop_contradictions
from veto_pl.data.processors import FILES as PROCESSOR
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.models.assemble import load_student, load_tokenizer
from veto_pl.models.loading import Pretrained
from veto_pl.models.reading import source_errors
from veto_pl.models.tokenizers import with_chat_template
from veto_pl.seams import Template
from veto_pl.storage.going_on import system_error, warn_if_unwritten

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM

BLUEPRINT = "veto_pl_student"
"""The key under which a checkpoint holds the files, by their names."""
BYTES = "latin-1"
"""A character for each byte: PyTorch reads any text with `weights_only`, and bytes not always."""
_FILES: WeakKeyDictionary[PreTrainedModel, tuple[Any, dict[str, str] | None]] = WeakKeyDictionary()
"""By model: the template of the prompts that the files were written for, and the files."""
_NAME = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*\.(?:json|txt|model|jinja|tiktoken|spm|bpe|codes|vocab|py)")


def student_files(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Any = None,
    processor: Callable[[PreTrainedModel], Mapping[str, str]] = lambda model: {},
) -> dict[str, str] | None:
    """Return the files for the checkpoints of a run, whose student and tokenizer do not change: they are written once.

    Where they cannot be written the run does not end: it warns, and the description is None. Where it is the disk that
    refuses them, the next checkpoint tries again.

    Args:
        model: the student.
        tokenizer: of the run.
        template: of the run's prompts; where none is known the tokenizer keeps its own.
        processor: gives the files of what reads the images of the model, if it reads some.
    """
    known = _FILES.get(model)
    if known is not None and known[0] is template:
        return known[1]
    files = None
    with warn_if_unwritten("The description of the student for checkpoints", "tries again at the next one"):
        files = _saved_files_or_warn(model, exported_tokenizer(tokenizer, template), processor)
        _FILES[model] = template, files
    return files


def _saved_files_or_warn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    processor: Callable[[PreTrainedModel], Mapping[str, str]],
) -> dict[str, str] | None:
    try:
        images = {name: text.encode().decode(BYTES) for name, text in processor(model).items()}
        return saved_files(model, tokenizer) | images
    except Exception as error:  # whatever a third party's `save_pretrained` raises
        if system_error(error) is not None:
            raise
        rank_zero_warn(f"Checkpoints do not describe the student, for it cannot be saved: {error}")
        return None


def exported_tokenizer(tokenizer: PreTrainedTokenizerBase, template: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of exports: its chat template makes the prompts of the run.

    It has none where a message of the user does not make a prompt (see `Template.chat_template`), and keeps its own
    where no template is known.
    """
    return with_run_template(template, tokenizer) if isinstance(template, Template) else tokenizer


def with_run_template(template: Template, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the chat template of a run's template, or with none."""
    return with_chat_template(tokenizer, template.chat_template(tokenizer))


def saved_files(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the files that `save_pretrained` writes beside the weights, by their names.

    Args:
        model: the student; its own code is among the files where it has some.
        tokenizer: of the run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
        if model._auto_class is not None:  # its class comes from a folder or the hub
            from transformers.dynamic_module_utils import custom_object_save

            custom_object_save(model, folder, config=model.config)
        model.config.save_pretrained(folder)
        if model.can_generate():
            drop_contradictions(model)
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes().decode(BYTES) for path in paths}
    if strange := next((name for name in files if not _NAME.fullmatch(name)), None):
        raise ConfigurationError(f"Its tokenizer writes a file of an unknown kind, `{strange}`.")
    return files


def rebuild_student(
    files: Any, checkpoint: Path, *, tensors: int, trust_remote_code: bool
) -> tuple[CausalLM, PreTrainedTokenizerBase]:
    """Return the student, with arbitrary weights, and the tokenizer that the files of a checkpoint describe.

    Args:
        files: what `saved_files` has returned.
        checkpoint: where they are from, for errors.
        tensors: how many the student has; an architecture of more layers is refused, and not made for ever.
        trust_remote_code: whether code among the files, or on the hub, may run.

    Raises:
        ConfigurationError: the files are damaged, or what they describe needs code.
    """
    with _unpacked(files, checkpoint) as folder, _errors_named(checkpoint, folder):
        source = Pretrained(str(folder), dtype="auto", attention="eager", trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(source)
        layers = getattr(source.config().get_text_config(), "num_hidden_layers", 0)
        if layers > tensors:
            raise ConfigurationError(f"it has {tensors} weights, which are too few for {layers} layers.")
        student = load_student(source, tokenizer, empty=True)
        wanted, found = student.model.config.architectures, type(student.model).__name__
        if wanted != [found]:
            raise ConfigurationError(
                f"its student is a {wanted!s:.100}, and transformers knows `{found}` for its configuration. Name the "
                "configuration of the run in `--config`, so that the student's own source makes it."
            )
        student.model.name_or_path = student.model.config.name_or_path = ""
        tokenizer.name_or_path = ""
        return student, tokenizer


def rebuild_processor(files: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of the files of a processor among those of a checkpoint; none where it reads no images."""
    return {name: files[name].encode(BYTES).decode() for name in PROCESSOR if name in files}


def rebuild_tokenizer(files: Any, checkpoint: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the files of a checkpoint describe; raise `ConfigurationError` where they do not."""
    with _unpacked(files, checkpoint) as folder, _errors_named(checkpoint, folder):
        tokenizer = load_tokenizer(Pretrained(str(folder)))
        tokenizer.name_or_path = ""
        return tokenizer


@contextmanager
def _unpacked(files: Any, checkpoint: Path) -> Iterator[Path]:
    """Write the files to a temporary folder. None of them is ever unpickled, and none can lie outside of it."""
    if not (isinstance(files, Mapping) and all(_is_file(name, data) for name, data in files.items())):
        raise ConfigurationError(f"The checkpoint `{checkpoint}` is damaged: it does not describe a student in files.")
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in files.items():
            path = Path(scratch, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((_without_implementations(data) if name == "config.json" else data).encode(BYTES))
        yield Path(scratch)


def _is_file(name: Any, data: Any) -> bool:
    texts = isinstance(name, str) and isinstance(data, str)
    return texts and _NAME.fullmatch(name) is not None and max(data, default="") < "\u0100"


def _without_implementations(config: str) -> str:
    """Remove the settings that name kernels on the hub: those are code, of no use where weights are only copied."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if not key.endswith("_implementation")}
        return value

    try:
        return json.dumps(plain(json.loads(config.encode(BYTES))))
    except (ValueError, RecursionError):
        return config  # transformers refuses it


@contextmanager
def _errors_named(checkpoint: Path, folder: Path) -> Iterator[None]:
    """Name the checkpoint in errors, instead of the temporary folder of its files."""
    try:
        with source_errors(
            str(folder), "student", "described by files that transformers can read without running their code"
        ):
            yield
    except VetoError as error:
        told = str(error).replace(str(folder), str(checkpoint))
        raise ConfigurationError(
            f"The student of `{checkpoint}` cannot be made: {told} If it needs code, and you trust the checkpoint, "
            "give `--trust_remote_code`."
        ) from error
