"""Where denoising models come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from veto_pl.core.bounds import Count, Positive, UnitInterval
from veto_pl.core.extras import require_extra
from veto_pl.core.mistakes import shorten
from veto_pl.core.part import Part
from veto_pl.core.seeds import run_seed
from veto_pl.core.step import Step
from veto_pl.diffusion.denoiser import Denoiser
from veto_pl.diffusion.model_calls import ModelCall
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.averaging import move_towards
from veto_pl.models.sharding import resharded
from veto_pl.parts.schedules import value_at
from veto_pl.seams import Schedule


class DenoiserSource(Part, ABC):
    """Where a denoising model comes from.

    Attributes:
        moves: a teacher of it follows the student, and is saved in checkpoints.
    """

    moves = False

    @abstractmethod
    def load(self) -> Denoiser:
        """Return the model with its weights, on the CPU."""

    def follow(self, teacher: Denoiser, student: Denoiser, step: Step) -> None:
        """Move a teacher of this source after an optimizer step; by default, leave it as it is."""


@dataclass(frozen=True)
class PretrainedDenoiser(DenoiserSource):
    """A transformer in the format of diffusers, of a folder or of the hub.

    Args:
        path: a folder or a hub id.
        subfolder: where the transformer lies in it, such as `transformer` in a pipeline.
        dtype: of the weights, such as `float32` or `bfloat16`.
        gradient_checkpointing: compute activations again in the backward pass, which takes less memory.
        call: how the model is asked for a velocity; None takes what is known of its class.
    """

    path: str
    subfolder: str | None = None
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    call: ModelCall | None = None

    def load(self) -> Denoiser:
        """Return the model; on the meta device its shapes alone.

        Raises:
            ConfigurationError: there is none, or diffusers is missing.
        """
        _require_diffusers(self)
        from diffusers import AutoModel

        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ConfigurationError(f"`PretrainedDenoiser.dtype` must name a dtype of torch, got {self.dtype!r}.")
        try:
            place = str(Path(self.path).expanduser())
            read = _shapes if torch.empty(0).is_meta else AutoModel.from_pretrained
            model = read(place, subfolder=self.subfolder, torch_dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            inside = "" if self.subfolder is None else f", subfolder `{self.subfolder}`"
            raise ConfigurationError(
                f"`PretrainedDenoiser.path`: given `{self.path}`{inside}, expected a transformer that diffusers has "
                f"written. It says: {shorten(error, 200)}"
            ) from error
        if self.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        return Denoiser(model, self.call)


@dataclass(frozen=True)
class RandomDenoiser(DenoiserSource):
    """A new transformer of diffusers with random weights.

    Args:
        architecture: a class of diffusers, such as `SD3Transformer2DModel`.
        settings: the arguments of the class.
        seed: of the weights; None is the run's. The global generators are left as they were.
        call: how the model is asked for a velocity; None takes what is known of its class.
    """

    architecture: str = "SD3Transformer2DModel"
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    call: ModelCall | None = None

    def load(self) -> Denoiser:
        """Return the model; raise `ConfigurationError` where diffusers refuses it, or is missing."""
        _require_diffusers(self)
        import diffusers

        kind = getattr(diffusers, self.architecture, None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
            raise ConfigurationError(
                f"`RandomDenoiser.architecture` must name a model of diffusers, got {self.architecture!r}."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(run_seed(self.seed))
            try:
                model = kind(**self.settings)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"`RandomDenoiser.settings`: `{self.architecture}` refuses them. It says: {shorten(error, 200)}"
                ) from error
        return Denoiser(model, self.call)


@dataclass(frozen=True)
class LoraDenoiser(DenoiserSource):
    """A model with a low-rank adapter of peft, which alone is trained.

    A teacher `AveragedDenoiser` of the same source begins with the same adapter.

    Args:
        source: the model.
        targets: the ends of the names of the layers that get an adapter.
        rank: of the adapter.
        alpha: the adapter is scaled by alpha / rank.
        seed: of the adapter's Gaussian start; None is the run's.

    References:
        arXiv 2106.09685; the defaults are those of 2605.05204
    """

    source: DenoiserSource
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    rank: Count = 64
    alpha: Positive = 128.0
    seed: int | None = None

    def load(self) -> Denoiser:
        """Return the model with its adapter; raise `ConfigurationError` where peft finds no such layer."""
        require_extra("peft", extra="peft", needed_by="`LoraDenoiser`")
        from peft import LoraConfig

        denoiser = self.source.load()
        denoiser.model.requires_grad_(False)
        settings = {"r": self.rank, "lora_alpha": self.alpha, "target_modules": list(self.targets)}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(run_seed(self.seed))
            try:
                denoiser.model.add_adapter(LoraConfig(init_lora_weights="gaussian", **settings))
            except ValueError as error:
                raise ConfigurationError(
                    f"`LoraDenoiser.targets`: given {list(self.targets)}, expected ends of names of layers. peft says: "
                    f"{shorten(error, 200)}"
                ) from error
        for weight in denoiser.model.parameters():
            if weight.requires_grad:  # an average of many small steps would stand still in bfloat16
                weight.data = weight.data.float()
        return denoiser


@dataclass(frozen=True)
class AveragedDenoiser(DenoiserSource):
    r"""A teacher that is an exponential moving average of the student.

    .. math:: \theta_T \leftarrow d\,\theta_T + (1 - d)\,\theta_S \quad \text{after every optimizer step}

    With d = 0 it is the student itself, the live teacher; a frozen teacher is the plain source. The paper's d = 0.9999
    moves it by 18 % in its 2000 steps; d = 1 - 0.2/steps does the same in others.

    Args:
        source: the model that it starts from, usually the student's own source.
        decay: d, a number in [0, 1] or a schedule.

    References:
        arXiv 2605.05204
    """

    source: DenoiserSource
    decay: UnitInterval | Schedule = 0.9999
    moves = True

    def load(self) -> Denoiser:
        """Return the model that it starts from."""
        return self.source.load()

    def follow(self, teacher: Denoiser, student: Denoiser, step: Step) -> None:
        """Move the weights that the student trains."""
        with resharded(cast(Any, teacher)), resharded(cast(Any, student)):
            move_towards(teacher, student, 1 - value_at(self.decay, step.index, step.total))


def _shapes(path: str, subfolder: str | None, torch_dtype: torch.dtype) -> Any:
    """Return the model of a configuration, without weights."""
    import diffusers

    config = diffusers.AutoModel.load_config(path, subfolder=subfolder)
    return getattr(diffusers, config["_class_name"]).from_config(config).to(torch_dtype)


def _require_diffusers(source: DenoiserSource) -> None:
    require_extra("diffusers", extra="diffusion", needed_by=f"`{type(source).__name__}`")
