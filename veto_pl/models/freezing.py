"""Students of which some modules stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.initialisation import TINY, RandomWeights
from veto_pl.models.module_names import full_names
from veto_pl.models.vision import image_weights
from veto_pl.models.wrapping import Wrapping
from veto_pl.seams import ModelSource
from veto_pl.seams.models import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMAGES = "images"
"""What stands for all weights that read images."""


@dataclass(frozen=True)
class PartlyFrozen(Wrapping):
    """A student of which some modules are not trained, such as the part that reads images.

    The frozen weights have neither gradient nor optimizer state. Checkpoints and exports hold them all the same.

    Args:
        source: the model.
        modules: what stays as it is, by the ends of the modules' names, such as `[visual]`, `[embed_tokens]` or
            `[layers.0, layers.1]`; `images` stands for everything beside the text's decoder and the head: the vision
            tower and the projector.

    Raises:
        ConfigurationError: no module has such a name, the model reads no images, or nothing is left to train.
    """

    modules: tuple[str, ...] = (IMAGES,)
    trains_in_place = True

    @classmethod
    def examples(cls) -> tuple[PartlyFrozen, ...]:
        return (cls(RandomWeights(dimensions=TINY), modules=("embed_tokens", "layers.0")),)

    def unquantised(self) -> ModelSource | None:
        source = self.source.unquantised()
        return None if source is None else replace(self, source=source)

    def load(self) -> PreTrainedModel:
        return self._frozen(self.source.load())

    def skeleton(self) -> PreTrainedModel:
        return self._frozen(self.source.skeleton())

    def stored(self) -> StoredWeights | None:
        return self.source.stored()

    def _frozen(self, model: PreTrainedModel) -> PreTrainedModel:
        images = image_weights(model) if IMAGES in self.modules else []
        if IMAGES in self.modules and not images:
            raise ConfigurationError(
                f"`PartlyFrozen.modules` names `{IMAGES}`, but {type(model).__name__} reads text only. Name modules of "
                "it, or train it without `PartlyFrozen`."
            )
        names = full_names("PartlyFrozen.modules", (name for name in self.modules if name != IMAGES), model)
        for weight in (*images, *(weight for name in names for weight in model.get_submodule(name).parameters())):
            weight.requires_grad_(False)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise ConfigurationError(
                f"`PartlyFrozen.modules` names {', '.join(f'`{name}`' for name in self.modules)}, which leaves nothing "
                "to train. Name fewer modules."
            )
        return model
