"""A transformers causal language model, seen as a backbone, a head and a decoding step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from veto_pl.core.architectures import text_config
from veto_pl.functional.alignment import restrict
from veto_pl.functional.heads import FunctionHead, Head, LinearHead, ScaleAndCap
from veto_pl.models.adapters import is_adapted, trained_copy
from veto_pl.models.attention import flash_bounds, is_flash
from veto_pl.models.backbone import backbone
from veto_pl.models.known_masks import known_rows
from veto_pl.models.modes import sampling_mode as sampling_mode  # plug-ins were told to import it from here
from veto_pl.models.packing import Packing
from veto_pl.models.probes import architecture_errors, cache_keyword, check_causal, check_head, keeps_sequences_apart
from veto_pl.models.vision import image_inputs, image_positions, kept_in_graph, mismatch_errors, placeholder_ids
from veto_pl.seams import LanguageModel, Sequences
from veto_pl.seams.media import Media, media_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")
SMALL_BATCH_ROWS = 8
"""Up to so many rows, weight x hidden is twice as fast on a CPU as hidden x weight: the weight is read once."""


class CausalLM(LanguageModel):
    """Splits a model into the backbone and the head, and restricts the head to the real vocabulary.

    Args:
        model: any decoder-only transformers model, also one that reads images.
        vocab_size: number of ids that the tokenizer knows; rows of the head beyond it are padding and never get
            probability.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size
        self.placeholders = placeholder_ids(model.config, vocab_size)
        self._supports_packing: bool | None = None
        self._cache_keyword: str | None = None

    def forward(self, sequences: Sequences, readout: Callable[[Tensor, LanguageModel], Result]) -> Result:
        """Run the backbone and hand the predicting positions to `readout`, inside this module's forward.

        The head runs in here so that sharded weights are gathered when it does.

        Args:
            sequences: B rows; only positions that predict a completion token are read out.
            readout: gets the hidden states [N, D] of these positions, row by row, and this model for its head.

        Returns:
            What `readout` returns.
        """
        media = media_of(sequences)
        alone = media is not None and media.has_images  # rows with images are not packed
        packing = Packing.of(sequences, None if alone else self._attention_cost(), self._max_row_tokens())
        hidden = self._backbone(packing, media if alone else None).flatten(0, 1)[packing.index]
        return readout(kept_in_graph(self.model, hidden), self)

    def head(self) -> Head:
        """Return the head as the loss reads it, a chunk of rows at a time.

        A plain linear layer is read through its weights; anything else (an adapter, a module with hooks) is called.
        """
        module = self.model.get_output_embeddings()
        if is_adapted(self.model):
            module = trained_copy(module) or module
        # Hooks have no public getter. A head that is patched in any way is called, or the patch would be bypassed.
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if type(module) is nn.Linear and not hooks and "forward" not in vars(module):
            return LinearHead(module.weight, module.bias, self.scale_and_cap, self.vocab_size)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return FunctionHead(module, trained, self.vocab_size, self.scale_and_cap)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the head: hidden states [..., D] to float32 logits [..., V] over the real vocabulary.

        Returns:
            The logits, and [...] the probability that the padding rows of the head would have taken.
        """
        return restrict(self.scale_and_cap(self.model.get_output_embeddings()(hidden)), self.vocab_size)

    def next_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Any,
        position_ids: Tensor | None = None,
        media: Media | None = None,
    ) -> Tensor:
        """Decode one step: return the float32 logits [B, V] of the token after the last of `input_ids`.

        Args:
            input_ids: [B, L] the tokens that `cache` does not hold yet.
            attention_mask: [B, M] over all tokens so far, the new ones last, or None where no row has padding.
            cache: a transformers cache; it is extended in place.
            position_ids: [B, L] of the new tokens, or as `read_positions` gives them; counted from the mask where they
                are not given.
            media: the images of the B rows, whose placeholders are among the new tokens.
        """
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
        if self._cache_keyword is None:
            self._cache_keyword = cache_keyword(self)
        with mismatch_errors():
            output = backbone(self.model)(
                input_ids=input_ids,
                attention_mask=None if attention_mask is None else attention_mask.long(),
                position_ids=position_ids,
                use_cache=True,
                **({} if media is None else image_inputs(self.model, input_ids, media)),
                **{self._cache_keyword: cache},
            )
        logits = self.scale_and_cap(self._head_product(output.last_hidden_state[:, -1]))[:, : self.vocab_size]
        return self.text_only(logits)

    def read_positions(self, input_ids: Tensor, attention_mask: Tensor | None, media: Media) -> Tensor | None:
        """Return at which positions whole rows with images are read, [3, B, L] int64; None for those of text.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L], or None where no row has padding.
            media: the images of the B rows.
        """
        return image_positions(self.model, input_ids, attention_mask, media)

    def _backbone(self, packing: Packing, media: Media | None = None) -> Tensor:
        """Return the hidden states [R, W, D]. Without a mask, the positions say where a sequence ends and the next
        begins.
        """
        mask = None if self.supports_packing and media is None else packing.attention_mask.long()
        images: dict[str, Any] = {}
        positions = packing.position_ids
        if media is not None:
            images = image_inputs(self.model, packing.input_ids, media)
            own = self.read_positions(packing.input_ids, mask, media)
            positions = positions if own is None else own
        flash = flash_bounds(self, packing) if mask is None else {}
        with known_rows(packed=packing.packed, padded=packing.padded), mismatch_errors():
            output = backbone(self.model)(
                input_ids=packing.input_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                **images,
                **flash,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _attention_cost(self) -> float | None:
        """Return what attention adds to a token's cost per token of its row, relative to about 12 D x D weights per
        layer.

        None means one row per sequence.

        Flash attention skips what is masked, and reads the bounds of sequences from positions in a single row only.
        """
        if not self.supports_packing:
            return None
        if is_flash(self):
            return 0.0
        width: int = self.model.get_input_embeddings().weight.shape[1]
        return 1 / (6 * width)

    def _head_product(self, hidden: Tensor) -> Tensor:
        """Return the head's raw output for [B, D]; for a few rows by the order of factors that a CPU prefers."""
        head = self.head()
        if isinstance(head, LinearHead) and hidden.device.type == "cpu" and 1 < len(hidden) <= SMALL_BATCH_ROWS:
            product = (head.weight @ hidden.T).T
            return product if head.bias is None else product + head.bias
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    def _max_row_tokens(self) -> int | None:
        """Return the tokens that a row may have: some models build masks of this width, whatever the positions in a
        row.
        """
        return self.positions

    @property
    def supports_packing(self) -> bool:
        """Whether sequences in one row stay apart in this model: tried out once, on a few tokens."""
        if self._supports_packing is None:
            self.probe()
        return bool(self._supports_packing)

    def probe(self) -> None:
        """Try the model out on a few tokens, and set `supports_packing`. Collective where the model is sharded.

        Raises:
            ConfigurationError: the architecture cannot be run as a causal language model, or does something unknown
                between hidden states and logits.
        """
        with architecture_errors(self):
            check_causal(self)
            check_head(self)
            self._supports_packing = keeps_sequences_apart(self)

    @property
    def scale_and_cap(self) -> ScaleAndCap:
        """What some architectures do to the head's output: scale (Cohere, Granite), soft-cap (Gemma)."""
        config = text_config(self.model.config)
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return ScaleAndCap(scale, getattr(config, "final_logit_softcapping", None) or None)
