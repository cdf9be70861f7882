"""Texts and image files as rows, encoded once by a pipeline, and its decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veto_pl.core.bounds import Count
from veto_pl.core.extras import require_extra
from veto_pl.core.part import Part
from veto_pl.diffusion.images import ImageSet
from veto_pl.diffusion.pipelines import Surroundings, load_surroundings
from veto_pl.diffusion.trajectories import ConditionBatch
from veto_pl.exceptions import ConfigurationError, DataError


@dataclass(frozen=True)
class PipelineImages(ImageSet):
    """Images in files with a text each, encoded once, before the training, by a pipeline of diffusers.

    A file has a JSON object per line: `image`, the path of a file beside it, and `text`. The student is told the text.
    The teacher is told the text and the image, as the pipeline's kind can: Z-Image by a Qwen3-VL that reads both
    (`vision`), FLUX.2-klein by the image itself, which it is asked to keep (`instruction`).

    Args:
        pipeline: a folder or a hub id.
        train: a file of rows.
        validation: another one, or None.
        test: another one, or None.
        size: pixels of a side; images are cut to a square in their middle.
        vision: a folder or hub id of a model that reads images, whose language weights become the pipeline's own.
        instruction: is written behind the text for the teacher.
        dtype: of the encoders' weights.

    References:
        arXiv 2605.05204
    """

    pipeline: str
    train: str
    validation: str | None = None
    test: str | None = None
    size: Count = 1024
    vision: str | None = None
    instruction: str = ""
    dtype: str = "bfloat16"

    def load(self, split: str) -> ConditionBatch | None:
        """Return the encoded rows.

        Raises:
            DataError: a file is missing or no rows.
            ConfigurationError: the pipeline or `size` cannot be used, or the teacher would be told nothing more.
        """
        named = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        if named is None:
            return None
        rows = read_rows(Path(named).expanduser(), self.size)
        around = load_surroundings(self.pipeline, dtype=dtype_of(self.dtype), vision=self.vision)
        self._check(around)
        if torch.cuda.is_available():
            around.pipeline.to("cuda")
        texts, images = [text for text, _ in rows], [image for _, image in rows]
        with torch.no_grad():
            latents = torch.cat([around.latents(pixels_of(one).to(around.pipeline.device)) for one in images])
            told = around.told(texts)
            more = around.told_more([f"{text} {self.instruction}".strip() for text in texts], images, latents)
        student, teacher = ({name: _at_rest(value) for name, value in one.items()} for one in (told, more))
        return ConditionBatch(student, teacher, _at_rest(latents), torch.arange(len(rows)))

    def _check(self, around: Surroundings) -> None:
        if self.size % around.step_of_pixels:
            raise ConfigurationError(
                f"`PipelineImages.size` must be a multiple of {around.step_of_pixels} here, got {self.size}."
            )
        if around.reads_images and self.vision is not None:
            raise ConfigurationError(
                "`PipelineImages.vision`: given a model, expected none: this pipeline reads images itself."
            )


@dataclass(frozen=True)
class PipelineDecoder(Part):
    """The decoder of a pipeline, for pictures of what a student of latents samples.

    Args:
        pipeline: a folder or a hub id.
        dtype: of the weights.
    """

    pipeline: str
    dtype: str = "float32"

    def load(self) -> Surroundings:
        """Return the pipeline with its autoencoder alone."""
        return load_surroundings(self.pipeline, dtype=dtype_of(self.dtype), only=("vae",))


def read_rows(path: Path, size: int) -> list[tuple[str, Any]]:
    """Return texts and images of Pillow, `size` pixels square.

    Raises:
        DataError: the file or an image is missing, or a line is no row.
    """
    require_extra("PIL", extra="diffusion", needed_by="Images in files")
    from PIL import Image, ImageOps

    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"`{path}` is no file of rows: {error!s:.200}") from error

    def row(number: int, line: str) -> tuple[str, Any]:
        try:
            given: Mapping[str, Any] = json.loads(line)
            image = Image.open(path.parent / given["image"]).convert("RGB")
            return str(given["text"]), ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: expected a JSON object with `image`, a file beside this one, and `text`. "
                f"{type(error).__name__}: {error!s:.200}"
            ) from error

    return [row(number, line) for number, line in enumerate(lines, start=1)]


def pixels_of(image: Any) -> Tensor:
    """Return an image of Pillow as [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def dtype_of(name: str) -> torch.dtype:
    """Return a dtype of torch by its name; raise `ConfigurationError` where there is none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigurationError(f"`dtype` must name a dtype of torch, such as bfloat16, got {name!r}.")
    return dtype


def _at_rest(value: Tensor) -> Tensor:
    return value.cpu().float() if value.is_floating_point() else value.cpu()
