"""The seams of models: a language model as the package sees it, and where models and tokenizers come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, device, nn

from veto_pl.core.architectures import auto_class, text_config
from veto_pl.core.own_errors import OwnErrors
from veto_pl.core.part import Part
from veto_pl.core.ranks import Sharding
from veto_pl.core.special_ids import listed_ids
from veto_pl.core.step import Step
from veto_pl.functional.heads import Head
from veto_pl.seams.batches import Sequences
from veto_pl.seams.media import Media

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

Result = TypeVar("Result")


class LanguageModel(OwnErrors, nn.Module, ABC):
    """A causal language model, seen as a backbone and a head, whatever library it comes from.

    Attributes:
        model: the model as transformers knows it.
        vocab_size: number of ids that the tokenizer knows, `V`; no other id ever gets probability.
        shards: how the ranks share the weights; None where every rank has them all.
        stays_in_place: the weights keep their addresses, so that kernels can be recorded.
        placeholders: ids that stand for images and the like, which nobody writes.
    """

    model: PreTrainedModel
    vocab_size: int
    shards: Sharding | None = None
    stays_in_place = True
    placeholders: tuple[int, ...] = ()

    def present(self, *, head_only: bool = False) -> AbstractContextManager[None]:
        """Have the weights, or at least those of the head, where they are computed with, while the block lasts.

        By default they are always there. Reading and sampling enter it (`sampling_mode`, `gathered`).
        """
        return nullcontext()

    @property
    def device(self) -> device:
        """Return the device on which the model computes."""
        return next(self.parameters()).device

    @property
    def positions(self) -> int | None:
        """Return how many tokens a row may have; None where the configuration does not say."""
        known = getattr(text_config(self.model.config), "max_position_embeddings", None)
        return known if isinstance(known, int) else None

    def text_only(self, logits: Tensor) -> Tensor:
        """Make logits [..., V] -inf in place where a placeholder would be written, and return them."""
        for place in self.placeholders:
            logits.select(-1, place).fill_(-torch.inf)  # an assignment would make a tensor of the host of it
        return logits

    @property
    def head_rows(self) -> int:
        """Return the number of rows of the head's matrix, padding included."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @abstractmethod
    def forward(self, sequences: Sequences, readout: Callable[[Tensor, LanguageModel], Result]) -> Result:
        """Run the backbone and hand the predicting positions to `readout`, inside this module's forward.

        The head runs in here so that sharded weights are gathered when it does.

        Args:
            sequences: B rows; only positions that predict a completion token are read out.
            readout: gets the hidden states [N, D] of these positions, row by row, and this model for its head.

        Returns:
            What `readout` returns.
        """

    @abstractmethod
    def head(self) -> Head:
        """Return the head as the loss reads it, a chunk of rows at a time."""

    @abstractmethod
    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Map hidden states [..., D] to float32 logits [..., V].

        Returns:
            The logits, and [...] the probability that padding rows of the head would have taken.
        """

    @abstractmethod
    def next_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Any,
        position_ids: Tensor | None = None,
        media: Media | None = None,
    ) -> Tensor:
        """Take one decoding step: return float32 logits [B, V] of the token after the last of `input_ids`.

        Args:
            input_ids: [B, L] the tokens that `cache` does not hold yet.
            attention_mask: [B, M] over all tokens so far, the new ones last, or None where no row has padding.
            cache: a transformers cache; it is extended in place.
            position_ids: [B, L] of the new tokens, or as `read_positions` gives them; counted from the mask where they
                are not given.
            media: the images of the B rows, whose placeholders are among the new tokens; it is left out where no row
                has any.
        """

    def read_positions(self, input_ids: Tensor, attention_mask: Tensor | None, media: Media) -> Tensor | None:
        """Return the positions at which whole rows [B, L] with images are read, [n, B, L] int64 of n kinds.

        By default None: they are counted as those of text.
        """
        return None


class StoredWeights(Protocol):
    """Weights as they are stored, to be read in parts."""

    def match(self, model: nn.Module) -> bool:
        """Return whether these are the weights of `model`, by their names."""

    def parts(self, rows: Mapping[str, slice | None]) -> Iterator[tuple[str, Tensor]]:
        """Yield weights by name, of each the rows that are asked for; None for all."""

    def shape(self, name: str) -> list[int]:
        """Return the shape of a weight."""

    def check(self, part: slice) -> None:
        """Raise an error where the files are damaged; `part` selects those that this rank looks at."""

    def slices(self, names: Collection[str]) -> dict[str, Any]:
        """Return what reads each weight in slices."""


class TeacherSource(Part, ABC):
    """Where a teacher comes from: a model (`ModelSource`), or what tells of tokens without one (`ScoreSource`).

    Attributes:
        moves: a teacher of it follows the student.
    """

    moves = False  # jsonargparse would look for the name `ClassVar` where subclasses live

    def resolved(self, student: ModelSource) -> TeacherSource:
        """Return this source in a run with a student of another source; by default, as it is."""
        return self


class ModelSource(TeacherSource, ABC):
    """Where a causal language model comes from.

    Attributes:
        offloads: a frozen model of it rests in the memory of the host while it is not used.
    """

    offloads = False

    @abstractmethod
    def config(self) -> PretrainedConfig:
        """Return the architecture, without weights."""

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """Return the model with its weights, on the CPU: whoever asks for it moves it.

        It may be called where another device is the default one, as Lightning makes that of the strategy.
        """

    def skeleton(self) -> PreTrainedModel:
        """Build the architecture with arbitrary weights; on the meta device it costs no memory."""
        config = self.config()
        model: PreTrainedModel = auto_class(config).from_config(config)
        return model

    def stored(self) -> StoredWeights | None:
        """Return the weights as they are stored, to be read in parts.

        None is returned where the model has to be made whole first.
        """
        return None

    @property
    def frozen_base(self) -> ModelSource | None:
        """Return where the weights come from that stay as they are while others beside them are trained.

        None where all weights are trained. Where there is one, checkpoints hold the trained weights only.
        """
        return None

    def published(self) -> Mapping[str, Any] | None:
        """Return the keyword arguments with which `from_pretrained` gives exactly this model on any machine.

        None where nothing does, as for a folder of this machine, or a model that was changed after it was read.
        """
        return None

    def unquantised(self) -> ModelSource | None:
        """Return the source of the same model before it was quantised; None where this source quantises nothing."""
        return None

    def resolved(self, student: ModelSource) -> ModelSource:
        return self

    def beside(self, student: LanguageModel) -> LanguageModel | None:
        """Return a frozen model that is made of the student's own weights; None where it has to be loaded."""
        return None

    def follow(self, teacher: LanguageModel, student: LanguageModel, step: Step) -> None:
        """Move a teacher of this source after an optimizer step; by default, leave it as it is.

        A source that does so sets `moves`, and the teacher is then saved in checkpoints.
        """

    def end_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text by the generation settings that are stored, or else by the configuration.

        No weights are read.
        """
        from transformers import GenerationConfig

        location = self.tokenizer_source
        settings: Any = None
        if location is not None:
            with suppress(OSError):  # a model without settings of its own
                settings = GenerationConfig.from_pretrained(
                    location["pretrained_model_name_or_path"], revision=location.get("revision")
                )
        if settings is not None:
            return listed_ids(getattr(settings, "eos_token_id", None))
        config = self.config()
        stated = (getattr(part, "eos_token_id", None) for part in (config, text_config(config)))
        return listed_ids(next((ids for ids in stated if ids is not None), None))

    @property
    def own_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer where the source has it in memory."""
        return None

    @property
    def tokenizer_source(self) -> Mapping[str, Any] | None:
        """Return the keyword arguments for `AutoTokenizer.from_pretrained`; None where there is no tokenizer."""
        return None

    @property
    def own_processor(self) -> ProcessorMixin | None:
        """Return what makes features of images, where the source has it in memory."""
        return None

    @property
    def processor_source(self) -> Mapping[str, Any] | None:
        """Return the keyword arguments for `AutoProcessor.from_pretrained`, by default those of the tokenizer.

        It is asked where rows have images; nobody has looked whether there is a processor.
        """
        return self.tokenizer_source


class TokenizerSource(Part, ABC):
    """Where a tokenizer comes from, when it is not the student's own."""

    @abstractmethod
    def load(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer."""

    @property
    def own_processor(self) -> ProcessorMixin | None:
        """Return the processor of images that was given with the tokenizer."""
        return None

    @property
    def processor_source(self) -> Mapping[str, Any] | None:
        """Return the keyword arguments for `AutoProcessor.from_pretrained`; None where it names no place."""
        return None
