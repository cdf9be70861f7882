"""Students that train an adapter of peft beside weights that stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from veto_pl.core.bounds import BelowOne, Count, Positive
from veto_pl.core.extras import require_extra
from veto_pl.core.mistakes import Mistake
from veto_pl.core.part import Setup
from veto_pl.core.seeds import run_seed
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.adapters import adapter_config, is_adapted
from veto_pl.models.initialisation import TINY, RandomWeights
from veto_pl.models.module_names import full_names, linear_names
from veto_pl.models.quantising import keep_layout
from veto_pl.models.reading import prefixed_errors, source_errors
from veto_pl.models.vision import reads_images
from veto_pl.models.wrapping import Wrapping
from veto_pl.seams import ModelSource
from veto_pl.storage.paths import expand_home

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL = "all-linear"
"""As peft calls every linear layer but the head."""


@dataclass(frozen=True)
class Lora(Wrapping):
    r"""A model with a low-rank adapter (LoRA, DoRA) of peft, which alone is trained.

    A matrix W of a layer becomes

    .. math:: W' = W + \tfrac{\alpha}{r} B A, \qquad A \in \mathbb{R}^{r \times D},\ B = 0 \text{ at the start}

    and with `dora` each row of it is brought to a trained length. The adapter is float32, whatever the base is.

    Args:
        source: the model; it may be quantised (QLoRA).
        targets: the layers that get an adapter: `all-linear` (all but the head; of a model that reads images, those of
            the text's decoder), a list of the ends of their names, such as `[q_proj, v_proj]`, or a regular expression
            of whole names, such as `.*layers\.1\..*_proj`. The two latter are looked for in a vision tower as well.
        rank: r.
        alpha: as in the formula.
        dropout: of what an adapter reads, in training.
        dora: train the lengths of the rows too.
        rank_stabilised: divide alpha by the root of r instead of r.
        modules_to_save: modules that are trained whole beside the adapter, such as `[lm_head]`, by the ends of their
            names.
        start: a folder, or hub id, with an adapter of peft to begin with; its own settings must be those given here.
        seed: of A; None is the run's. The global generators are left as they were.

    References:
        arXiv 2106.09685; DoRA 2402.09353; QLoRA 2305.14314
    """

    targets: tuple[str, ...] | str = ALL
    rank: Count = 16
    alpha: Positive = 32.0
    dropout: BelowOne = 0.0
    dora: bool = False
    rank_stabilised: bool = False
    modules_to_save: tuple[str, ...] = ()
    start: str | None = None
    seed: int | None = None
    trains_in_place = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "start", expand_home(self.start))
        if self.source.frozen_base is not None:
            raise ConfigurationError(
                f"`Lora.source` is a `{type(self.source).__name__}`, which has an adapter already. Name the model "
                "without one; to go on with an adapter, name its folder in `start`."
            )
        if isinstance(self.targets, str) and self.targets != ALL:
            _compiled(self.targets)
        elif not self.targets:
            raise ConfigurationError(f"`Lora.targets` must name a layer, or be `{ALL}`, got nothing.")

    @classmethod
    def examples(cls) -> tuple[Lora, ...]:
        return (cls(RandomWeights(dimensions=TINY), rank=2),) if find_spec("peft") else ()

    @property
    def frozen_base(self) -> ModelSource:
        return self.source

    def requirements(self, setup: Setup, path: str) -> Iterable[Mistake]:
        """Raise `ConfigurationError` where peft is not installed."""
        require_extra("peft", extra="peft", needed_by="`Lora`")
        return ()

    def load(self) -> PreTrainedModel:
        with torch.device("cpu"):  # where another one may be the default
            model = self._with_adapter(self.source.load())
            keep_layout(model)
        if self.start is not None:
            _read_adapter(model, self.start)
        return model

    def skeleton(self) -> PreTrainedModel:
        return self._with_adapter(self.source.skeleton())

    def _with_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        require_extra("peft", extra="peft", needed_by="`Lora`")
        if is_adapted(model):
            raise ConfigurationError("`Lora.source` gives a model that has an adapter already. Merge it before.")
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import cast_adapter_dtype

        self._check_targets(model)
        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            use_rslora=self.rank_stabilised,
            target_modules=self._target_modules(model),
            modules_to_save=full_names("Lora.modules_to_save", self.modules_to_save, model) or None,
            fan_in_fan_out=_has_transposed(model),
            task_type="CAUSAL_LM",
        )
        told = f"peft cannot put the adapter of `Lora` into {type(model).__name__}."
        with prefixed_errors(told), _seeded(run_seed(self.seed)):
            inject_adapter_in_model(settings, model)
            cast_adapter_dtype(model, "default")
        return model

    def _target_modules(self, model: PreTrainedModel) -> str | list[str]:
        """Return what peft calls the layers: by name those of the text's decoder, which it would not tell apart."""
        if not isinstance(self.targets, str):
            return [*self.targets]
        if self.targets != ALL or not reads_images(model):
            return self.targets
        decoder = model.get_decoder()
        outer = next(name for name, module in model.named_modules() if module is decoder)
        ends = sorted(
            {name.rpartition(".")[2] for name, module in decoder.named_modules() if type(module) is nn.Linear}
        )
        return rf"{re.escape(outer)}\..*\.({'|'.join(ends)})"

    def _check_targets(self, model: nn.Module) -> None:
        """Raise `ConfigurationError` for a name that no module has; peft leaves such a one out without a word."""
        if not isinstance(self.targets, str):
            full_names("Lora.targets", self.targets, model)
            return
        pattern = _compiled(self.targets)
        if self.targets != ALL and not any(pattern.fullmatch(name) for name, _ in model.named_modules()):
            raise ConfigurationError(
                f"`Lora.targets` is the expression `{self.targets}`, which matches the whole name of no layer. The "
                f"names are like `{linear_names(model)[0]}`; a list of names is written in brackets."
            )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"`Lora.targets` must be a regular expression, got `{pattern}` ({error}).") from error


def _has_transposed(model: nn.Module) -> bool:
    """Return whether the linear layers are those of GPT-2, whose matrices are transposed."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def _seeded(seed: int) -> Any:
    """Return a context in which A is drawn from the seed, on the CPU alone."""
    from contextlib import ExitStack

    stack = ExitStack()
    stack.enter_context(torch.random.fork_rng(devices=[]))
    torch.default_generator.manual_seed(seed)
    return stack


def _read_adapter(model: PreTrainedModel, place: str) -> None:
    """Load the weights of an adapter that peft has written; raise `ConfigurationError` where they do not fit."""
    from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict

    with source_errors(place, "adapter", "a folder, or a hub id that can be reached, with an adapter of peft"):
        stored = LoraConfig.from_pretrained(place)
        weights = load_peft_weights(place, device="cpu")
    own = adapter_config(model)
    differing = [
        name for name in ("r", "lora_alpha", "use_dora", "use_rslora") if getattr(stored, name) != getattr(own, name)
    ]
    if differing:
        said = ", ".join(f"{name} {getattr(stored, name)} instead of {getattr(own, name)}" for name in differing)
        raise ConfigurationError(
            f"The adapter in `{place}` has other settings than `Lora`: {said}. Give `Lora` the same."
        )
    plain = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    found = set_peft_model_state_dict(model, plain)
    wrong = [
        *found.unexpected_keys,
        *(name for name in found.missing_keys if "lora_" in name or "modules_to_save" in name),
    ]
    if wrong:
        raise ConfigurationError(
            f"The adapter in `{place}` has not the layers that `Lora` names: {len(wrong)} weights differ, for instance "
            f"`{wrong[0]}`. Give `Lora` the same `targets` and `modules_to_save`."
        )
