"""Images in arrays, as rows of a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from veto_pl.core.bounds import Count
from veto_pl.core.mistakes import check_kind, check_number
from veto_pl.core.part import Part
from veto_pl.core.seeds import run_seed
from veto_pl.core.step import Step
from veto_pl.data.resumed_rows import ResumedRows
from veto_pl.data.sampler import RankSampler, even_batches
from veto_pl.diffusion.trajectories import ConditionBatch
from veto_pl.exceptions import ConfigurationError, DataError

TARGETS, CONDITION, STRONGER = "targets", "conditions.", "stronger."
"""What the arrays of a file are called: the images, and in front of the names of conditions."""


class ImageSet(Part, ABC):
    """Images with what a model is told of them."""

    @abstractmethod
    def load(self, split: str) -> ConditionBatch | None:
        """Return all rows of `train`, `validation` or `test`; None where there are none."""


@dataclass(frozen=True)
class ArrayImages(ImageSet):
    """Arrays of numpy: `targets` [N, C, H, W], `conditions.NAME` [N, ...] and `stronger.NAME` [N, ...].

    NAME is an argument of the model's forward, such as `encoder_hidden_states`. `stronger` is what the teacher is told;
    without any it is told what the student is told. Nothing in a file is run.

    Args:
        train: a `.npz` file.
        validation: another one, or None.
        test: another one, or None.
    """

    train: str
    validation: str | None = None
    test: str | None = None

    def load(self, split: str) -> ConditionBatch | None:
        """Return the rows of a file; raise `DataError` where it is missing or no archive of arrays."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        if named is None:
            return None
        path = Path(named).expanduser()
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"`{path}` is no `.npz` file with arrays. numpy says: {error!s:.200}") from error
        return rows_of_arrays(arrays, str(path))


@dataclass(frozen=True)
class Gratings(ImageSet):
    """Stripes in one of several directions, made on the spot: a task for trying things out, in seconds.

    The student is told the direction (`encoder_hidden_states` [1, width] and `pooled_projections` [width], one-hot),
    the teacher the image itself as well, in a second vector.

    Args:
        rows: of each split.
        size: pixels of a side.
        directions: how many.
        width: of a condition; a condition holds an image, so it is at least the pixels of one.
        seed: of the phases; None is the run's.
    """

    rows: Count = 64
    size: Count = 8
    directions: Count = 4
    width: Count = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < max(self.size**2, self.directions):
            raise ConfigurationError(
                f"`Gratings.width` must be at least {max(self.size**2, self.directions)}, which an image and a "
                f"direction need, got {self.width}."
            )

    def load(self, split: str) -> ConditionBatch:
        """Return rows with random phases."""
        numbers = torch.arange(self.rows)
        phase = Step(0, 1, run_seed(self.seed)).uniform(f"gratings {split}", numbers, 1, 1).float() * 2 * math.pi
        direction = numbers % self.directions
        angle = (direction * math.pi / self.directions).view(-1, 1, 1)
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        images = torch.sin(math.pi / 2 * (x * angle.cos() + y * angle.sin()) + phase)[:, None]
        told = torch.nn.functional.one_hot(direction, self.width).float()
        shown = torch.nn.functional.pad(images.flatten(1), (0, self.width - self.size**2))
        nothing = torch.zeros_like(shown)
        conditions, stronger = (
            {"encoder_hidden_states": torch.stack([told, second], dim=1), "pooled_projections": told}
            for second in (nothing, shown)
        )
        return ConditionBatch(conditions, stronger, images, numbers)


def rows_of_arrays(arrays: Mapping[str, Any], place: str = "the arrays") -> ConditionBatch:
    """Return rows of arrays, named as in `ArrayImages`.

    Raises:
        DataError: an array is missing, or one of the teacher's that the student has, an array has another number of
            rows, or numbers that are not finite.
    """
    if TARGETS not in arrays:
        raise DataError(f"{place}: there is no `{TARGETS}`, only {', '.join(map(str, arrays)) or 'nothing'}.")
    made = {name: _as_tensor(name, value, place) for name, value in arrays.items()}
    targets = made.pop(TARGETS)
    parts: dict[str, dict[str, Tensor]] = {CONDITION: {}, STRONGER: {}}
    for name, value in made.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is None:
            raise DataError(f"{place}: `{name}` is no name. Call it `{CONDITION}{name}` or `{STRONGER}{name}`.")
        if len(value) != len(targets):
            raise DataError(f"{place}: `{name}` has {len(value)} rows, and `{TARGETS}` {len(targets)}.")
        parts[prefix][name.removeprefix(prefix)] = value
    missing = sorted(set(parts[CONDITION]) - set(parts[STRONGER])) if parts[STRONGER] else []
    if missing:
        raise DataError(
            f"{place}: `{STRONGER}{missing[0]}` is missing. The teacher is told its own condition alone, the whole of "
            f"it: add what it is to know in the place of `{CONDITION}{missing[0]}`, perhaps the same."
        )
    return ConditionBatch(parts[CONDITION], parts[STRONGER], targets, torch.arange(len(targets)))


def _as_tensor(name: str, value: Any, place: str) -> Tensor:
    array = np.asarray(value)
    if array.ndim == 0 or array.dtype.kind not in "fiub" or (name == TARGETS and array.dtype.kind != "f"):
        expected = "floating-point numbers, such as pixels in [-1, 1]" if name == TARGETS else "numbers"
        raise DataError(f"{place}: `{name}` is {array.dtype} {list(array.shape)}, expected {expected}, a row each.")
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.is_floating_point():
        finite = tensor.isfinite()[:, None].flatten(1).all(1)
        if not finite.all():
            rows = (~finite).nonzero().flatten().tolist()
            raise DataError(
                f"{place}: `{name}` has NaN or infinite numbers in {len(rows)} rows, first row {rows[0]}. Mend or "
                "leave out these rows."
            )
        tensor = tensor.float()
    return tensor


class ImageDataModule(ResumedRows, L.LightningDataModule):
    """Serves images as `ConditionBatch`es.

    Training rows are shuffled anew every epoch, in an order that does not depend on the number of ranks; up to
    world - 1 rows of an epoch are dropped, so that all ranks get equally many. A validation reads each row once.

    Args:
        images: the rows.
        batch_size: rows of a training batch, on each rank.
        validation_batch_size: rows of a validation batch, on each rank; None for `batch_size`.
        shuffle: shuffle the training rows.
        seed: of the order; None is the seed that Lightning was given, or else 0.

    Raises:
        ConfigurationError: `images` is no `ImageSet`, or a size is below 1.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int = 8,
        validation_batch_size: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_kind(images, ImageSet, "data.images", "an `ImageSet`, such as `ArrayImages`")
        self.images = images
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size or batch_size
        check_number("ImageDataModule.batch_size", self.batch_size, 1)
        check_number("ImageDataModule.validation_batch_size", self.validation_batch_size, 1)
        self.shuffle = shuffle
        self.seed = run_seed(seed)
        self._rows: dict[str, ConditionBatch | None] = {}
        self._order = RankSampler(0)

    def setup(self, stage: str) -> None:
        """Load the rows; raise `DataError` where a training has none."""
        for split in ("train", "validation", "test"):
            if split not in self._rows:
                self._rows[split] = self.images.load(split)
        if stage == "fit" and not self._rows["train"]:
            raise DataError(f"`{type(self.images).__name__}` has no rows to train on.")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches; the last one of an epoch may be smaller."""
        rows = self._rows["train"]
        assert rows is not None, "`setup` has looked"
        self._order = RankSampler(len(rows), *self._place, seed=self.seed, shuffle=self.shuffle, even=True)
        self._start = (0, 0, 0)
        return self._loader(rows, range(len(rows)), sampler=self._order, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return every validation row once; an empty list, which turns validation off, where there are none."""
        return self._every_row("validation")

    @property
    def test_split(self) -> str:
        """The split that a test reads: that of the validation where there is no other."""
        return "test" if self._rows.get("test") else "validation"

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return every row of the test once."""
        return self._every_row(self.test_split)

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the rows of the test."""
        return self.test_dataloader()

    def _every_row(self, split: str) -> DataLoader[Any] | list[Any]:
        if not (rows := self._rows[split]):
            return []
        batches = even_batches(range(len(rows)), *self._place, self.validation_batch_size)
        return self._loader(rows, batches, sampler=RankSampler(len(batches), shuffle=False), batch_size=None)

    def _loader(self, rows: ConditionBatch, places: Any, **settings: Any) -> DataLoader[Any]:
        def collate(index: Any) -> ConditionBatch:
            return rows.rows(torch.tensor(list(index)))

        return DataLoader(places, collate_fn=collate, generator=torch.Generator().manual_seed(self.seed), **settings)
