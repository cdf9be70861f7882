"""The student of a checkpoint in the place of the one that is trained, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.adapters import adapter_names, is_adapted
from veto_pl.models.export_folder import STUDENT_PREFIX
from veto_pl.models.sharding import local_part, resharded
from veto_pl.seams import LanguageModel
from veto_pl.storage.checkpoint_io import read_checkpoint
from veto_pl.storage.sharded_checkpoint import check_sharded, is_sharded, load_sharded_into


@contextmanager
def weights_of(checkpoint: str | Path, student: LanguageModel) -> Iterator[None]:
    """Hold the weights of a checkpoint in the student while the block lasts, and then its own again.

    Collective: enter it on every rank. The own ones wait in the memory of the host.

    Args:
        checkpoint: of the same run: a file, or the folder of a sharded one.
        student: whole or sharded, as it was when the checkpoint was written.

    Raises:
        ConfigurationError: the checkpoint is missing or damaged.
    """
    with resharded(student), torch.no_grad():
        names = stored_names(student)
        weights = {name: weight for name, weight in student.state_dict().items() if name in names}
        own = {name: local_part(weight).detach().to("cpu", copy=True) for name, weight in weights.items()}
        try:
            _fill(student, Path(checkpoint))
            yield
        finally:
            for name, weight in weights.items():
                local_part(weight).copy_(own[name])


def stored_names(student: LanguageModel) -> set[str]:
    """Return the names, in the student's state, of what checkpoints hold: all of it, or an adapter alone."""
    if not is_adapted(student.model):
        return set(student.state_dict())
    return {f"model.{name}" for name in adapter_names(student.model)}


def weights_in(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the student's weights in what a checkpoint file holds, by their names in the student."""
    saved: Mapping[str, Tensor] = checkpoint["state_dict"]
    return {k.removeprefix(STUDENT_PREFIX): v for k, v in saved.items() if k.startswith(STUDENT_PREFIX)}


def load_stored(student: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Load what a checkpoint holds of the student; raise `RuntimeError` where a weight is missing or has no place."""
    if is_adapted(student.model) and (wrong := sorted(stored_names(student) ^ weights.keys())):
        raise RuntimeError(f"{len(wrong)} weights of the adapter are missing or have no place, such as {wrong[0]}")
    student.load_state_dict(weights, strict=not is_adapted(student.model))


def _fill(student: LanguageModel, checkpoint: Path) -> None:
    if is_sharded(checkpoint):
        check_sharded(checkpoint)
        names = stored_names(student)
        parts = {f"{STUDENT_PREFIX}{name}": weight for name, weight in student.state_dict().items() if name in names}
        load_sharded_into(checkpoint, {"state_dict": parts})
        return
    try:
        load_stored(student, weights_in(read_checkpoint(checkpoint)))
    except RuntimeError as error:
        raise ConfigurationError(
            f"The weights of `{checkpoint}` are not those of the student: {' '.join(str(error).split()):.300}"
        ) from error
