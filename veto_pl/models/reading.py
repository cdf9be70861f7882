"""Checks of a stored model: a place that cannot be read, code instead of numbers, weights that are missing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from veto_pl.core.special_ids import listed_ids
from veto_pl.exceptions import ConfigurationError, DataError, VetoError
from veto_pl.storage.checksums import SUMS, damaged, read_sums

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


PLACE = "a hub id that can be reached, or a folder with config.json and *.safetensors"


@contextmanager
def source_errors(path: str, what: str = "model", expected: str = PLACE) -> Iterator[None]:
    """Turn whatever the library raises about a place into one error that names the place.

    Running out of memory is no fault of the place and passes through.

    Args:
        path: hub id, folder or file.
        what: what is read.
        expected: what it is read from.
    """
    try:
        yield
    except (VetoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ConfigurationError(
            f"No {what} could be read from `{path[:300]}`. It must be {expected}. "
            f"The library says: {kind}{reason if len(reason) <= 400 else reason[:397] + '...'}"
        ) from error


@contextmanager
def prefixed_errors(told: str) -> Iterator[None]:
    """Turn whatever a library raises into a `ConfigurationError` that begins with `told` and ends with its reason."""
    try:
        yield
    except (VetoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"{told} It says: {reason:.300}") from error


def setting_errors(setting: str, given: object) -> AbstractContextManager[None]:
    """Return a context that turns whatever the library raises about a setting into an error that names it."""
    return prefixed_errors(f"`{setting}` has values that the architecture does not take: {given!s:.300}.")


def check_folder(path: str) -> None:
    """Refuse, before anything is opened, what would hang, run code or lead out of the folder. A hub id passes.

    Raises:
        ConfigurationError: the folder holds pickled weights only, or an adapter.
        DataError: a file is a pipe or a device, or the index of the weights names what is not in the folder.
    """
    folder = Path(path)
    check_regular(folder)
    _refuse_adapter(folder)
    if (folder / INDEX).is_file():
        _check_index(folder / INDEX)
    elif folder.is_dir() and not any(folder.glob("*.safetensors")):
        _refuse_pickle(folder)


def check_regular(folder: Path) -> None:
    """Raise `DataError` where a folder holds a pipe, which would wait for ever, or a device."""
    inside = folder.iterdir() if folder.is_dir() else ()
    if strange := sorted(p.name for p in inside if p.exists() and not (p.is_file() or p.is_dir())):
        raise DataError(f"`{folder / strange[0]}` is a pipe or a device, expected a file. Put the file there.")


def check_sums(folder: Path, names: Collection[str] | None = None) -> None:
    """Refuse weights that are not those that an export has written; a folder without checksums passes.

    Args:
        folder: of a model.
        names: of the files that are compared; all weights by default.

    Raises:
        DataError: a file is damaged, or was replaced.
    """
    sums = read_sums(folder) or {}
    weights = [name for name in sums if name.endswith(".safetensors") and (names is None or name in names)]
    if wrong := damaged(folder, sums, weights):
        raise DataError(
            f"`{folder / wrong[0]}` is not the file that the export has written; it is damaged, or was replaced. "
            f"Export the model again, or remove `{SUMS}` beside it if you have replaced it yourself."
        )


def check_stored_dropout(path: str, config: PretrainedConfig, names: Collection[str]) -> None:
    """Refuse dropout probabilities outside [0, 1), which only the first training step would refuse."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None and not (isinstance(value, int | float) and 0 <= value < 1):
            raise ConfigurationError(
                f"The config.json of `{path}` has `{name}` {value!r}, expected a number in [0, 1). Correct it "
                "there, or set `dropout`."
            )


def check_endings(path: str, model: PreTrainedModel) -> None:
    """Refuse a `generation_config.json` whose `eos_token_id` holds something that is no id."""
    listed = listed_ids(getattr(model.generation_config, "eos_token_id", None))
    if wrong := [i for i in listed if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
        raise ConfigurationError(
            f"The generation_config.json of `{path}` has the `eos_token_id` {wrong[0]!r}, expected whole numbers of at "
            "least 0. Correct it there."
        )


def check_weights(path: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Refuse weights that are missing, of another shape or not finite; the library would draw them at random.

    Weights that the architecture does not have are left out with a warning: some checkpoints carry more than one head.

    Args:
        path: where they come from.
        model: with the weights.
        found: what the library says that it did not find, and could not use.

    Raises:
        DataError: names the first of them.
    """
    shapes = [f"{name} {list(stored)} instead of {list(own)}" for name, stored, own in found["mismatched_keys"]]
    # A sum is not finite if a term is not, and needs no memory of its own.
    broken = [name for name, weight in model.named_parameters() if not bool(weight.sum(dtype=torch.float32).isfinite())]
    wrong = {
        "not there": found["missing_keys"],
        "of another shape": shapes,
        "not finite (NaN or infinity)": [
            name for name in broken if not bool(model.get_parameter(name).isfinite().all())
        ],
    }
    for fault, names in wrong.items():
        if names:
            raise DataError(
                f"The weights of `{path}` cannot be used, for these are {fault}: {_first_name(names)}. The files are "
                "damaged, or belong to another config.json. Fetch or save them again."
            )
    if found["unexpected_keys"]:
        unused = f"`{path}` has weights that its architecture does not use: {_first_name(found['unexpected_keys'])}."
        warnings.warn(unused, stacklevel=2)


def _first_name(names: Collection[str]) -> str:
    first = sorted(names)[0]
    return f"`{first}`" if len(names) == 1 else f"`{first}` and {len(names) - 1} more"


def _refuse_adapter(folder: Path) -> None:
    file = folder / ADAPTER
    if not file.is_file():
        return
    try:
        base = str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        base = "its base model"
    raise ConfigurationError(
        f"`{folder}` holds an adapter ({ADAPTER}) for `{base[:200]}`, not a model. Name that model as the `source` of "
        "a `Lora`, and this folder as its `start`, with the adapter's own `rank`, `alpha` and `targets`."
    )


def _refuse_pickle(folder: Path) -> None:
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ConfigurationError(
            f"`{folder}` holds pickled weights only ({', '.join(pickles[:5])}), which can run code when they are read. "
            "Convert them: load them where you trust them and call `save_pretrained`, which writes safetensors."
        )


def _check_index(index: Path) -> None:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(file) for file in files})
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"`{index}` is no index of weights ({error!r:.100}). Fetch or save the model again.") from error
    for name in names:
        inside = name == Path(name).name and name.endswith(".safetensors")
        if not inside or not (index.parent / name).is_file():
            fault = "does not exist" if inside else "is no safetensors file of this folder"
            raise DataError(f"`{index}` names the file `{name[:100]}`, which {fault}. Fetch or save the model again.")
