"""The models of a run without their weights: shapes, types and a device, and nothing in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_models
from veto_pl.models.backbone import backbone
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.layers import decoder_layers
from veto_pl.models.quantising import packed_size
from veto_pl.models.vision import image_weights
from veto_pl.module import DistillationModule
from veto_pl.planning.observation import Observation
from veto_pl.seams import LanguageModel, Models, ModelSource, Sequences

Result = TypeVar("Result")
SAMPLE_ROWS = 512
"""Rows that the loss head is shown, or two chunks if those are more."""


@dataclass(frozen=True)
class Weights:
    """What a model's weights take; a weight that is used twice counts once, one of another model not at all.

    Args:
        parameters: how many numbers.
        bytes: of parameters and buffers, as they are stored.
        trained: bytes of the parameters that have a gradient.
        outer: bytes outside the decoder layers: embeddings, last norm, head.
        layer: bytes of the largest decoder layer.
        alone: bytes of a copy in memory of its own, whose weights are numbers.
        images: how many of the numbers read images.
    """

    parameters: int
    bytes: int
    trained: int
    outer: int
    layer: int
    alone: int
    images: int = 0

    @classmethod
    def of(cls, model: CausalLM, beside: CausalLM | None = None) -> Weights:
        """Return the weights of a model on any device, without those that it shares with another one."""
        others = set() if beside is None else {id(tensor) for tensor in (*beside.parameters(), *beside.buffers())}
        parameters = list(model.parameters())
        own = [tensor for tensor in (*parameters, *model.buffers()) if id(tensor) not in others]
        saved = _saved_by_packing(model)
        layers = [_size([*layer.parameters()]) - sum(saved.get(id(p), 0) for p in layer.parameters())
                  for layer in _layers(model)]  # fmt: skip
        return cls(
            parameters=sum(p.numel() for p in parameters),
            bytes=_size(own) - sum(saved.get(id(tensor), 0) for tensor in own),
            trained=_size([p for p in parameters if p.requires_grad]),
            outer=_size(parameters) - sum(_size([*layer.parameters()]) for layer in _layers(model)),
            layer=max(layers, default=0),
            alone=_size([*parameters, *model.buffers()]),
            images=sum(weight.numel() for weight in image_weights(model.model)),
        )

    def cast(self, size: int) -> Weights:
        """Return what the same weights take with `size` bytes for each number, where they have more."""
        share = min(1.0, size * self.parameters / max(self.alone, 1))
        sizes = {name: int(share * getattr(self, name)) for name in ("bytes", "outer", "layer", "alone")}
        return replace(self, **sizes)


class ShapeOnlyLM(CausalLM):
    """Reads sequences of stated lengths without looking at them, and books its parts under phases of their own.

    Args:
        model: the skeleton.
        vocab_size: as in `CausalLM`.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        super().__init__(model, vocab_size)
        self._supports_packing = True
        self.observation: Observation | None = None
        self.parts: tuple[str, str] | None = None
        self.sample = SAMPLE_ROWS

    def forward(self, sequences: Sequences, readout: Callable[[Tensor, CausalLM], Result]) -> Result:
        """Run the backbone without a mask or packing, since every row has the full length, then the readout.

        The readout works in chunks, and its memory does not grow with their number: it gets enough rows for a few, and
        its arithmetic is scaled up.
        """
        with self._part(0, 1.0):
            output = backbone(self.model)(input_ids=sequences.input_ids, use_cache=False)
            index = sequences.predictions.nonzero()[:, 0]  # as many as there are; where they stand plays no part
            hidden = output.last_hidden_state[:, :-1].flatten(0, 1)[index]
            del output
        seen = hidden[: self.sample]
        with self._part(1, len(hidden) / max(len(seen), 1)):
            unseen = torch.empty_like(hidden[self.sample :])  # the gradient of the rows that are left out
            result = readout(seen, self)
            del unseen
        return result

    @contextmanager
    def _part(self, number: int, scale: float) -> Iterator[None]:
        if self.observation is None or self.parts is None:
            yield
            return
        with self.observation.phase(self.parts[number]) as phase:
            before = phase.flops
            yield
            phase.flops = before + (phase.flops - before) * scale


@contextmanager
def phases_of(model: ShapeOnlyLM | None, parts: tuple[str, str]) -> Iterator[None]:
    """Count the backbone and the readout of a model under two phases of their own while the block lasts."""
    if model is not None:
        model.parts = parts
    try:
        yield
    finally:
        if model is not None:
            model.parts = None


def skeletons(module: DistillationModule, dtype: torch.dtype | None, *, checkpointing: bool) -> Models:
    """Return the models of a run on the meta device.

    Args:
        module: names their sources.
        dtype: what the trainer turns the student into; None leaves the source's.
        checkpointing: recompute the student's activations, whatever its source says.

    Raises:
        ConfigurationError: a model cannot be read, or cannot do without its activations.
    """
    portable = {name: _portable(source) for name, source in module.model_sources.items()}
    named = {**module.teacher_sources, **portable}
    reference = module.reference_source
    with torch.device("meta"), _default_dtype(dtype):
        models = load_models(
            _portable(module.student_source),
            None,
            module.tokenizer,
            empty=True,
            reference=None if reference is None else _portable(reference),
            teachers=named,
            objective=module.objective,
        )
    if dtype is not None:
        models.student.to(dtype)
    if checkpointing:
        if not models.student.model.supports_gradient_checkpointing:
            name = type(models.student.model).__name__
            raise ConfigurationError(
                f"{name} has no gradient checkpointing. Leave it out, or use another architecture."
            )
        models.student.model.gradient_checkpointing_enable({"use_reentrant": False})
    return models


def without_storage(model: LanguageModel) -> ShapeOnlyLM:
    """Return a skeleton with fake tensors on the CPU; call it inside a `FakeTensorMode`, which then runs it."""
    known: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = known.setdefault(id(tensor), _fake_tensor(tensor))  # type: ignore[assignment]
    return ShapeOnlyLM(model.model, model.vocab_size).train(model.training)


def _fake_tensor(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _portable(source: ModelSource) -> ModelSource:
    """Return the source with `sdpa` instead of flash attention, which the CPU lacks; it needs as little memory."""
    fields = vars(source)
    if isinstance(inner := fields.get("source"), ModelSource):
        return replace(source, source=_portable(inner))  # type: ignore[type-var]
    if "flash" in str(fields.get("attention")):
        return replace(source, attention="sdpa")  # type: ignore[type-var]
    return source


def _layers(model: CausalLM) -> list[nn.Module]:
    try:
        return list(decoder_layers(model.model)[1])
    except ConfigurationError:  # an architecture that is not made of equal layers
        return []


def _saved_by_packing(model: CausalLM) -> dict[int, int]:
    """Return, by tensor, the bytes that a quantised matrix of a layer needs less than its numbers."""
    size = packed_size(model.model.config)
    if size is None:
        return {}
    matrices = [module.weight for layer in _layers(model) for module in layer.modules() if type(module) is nn.Linear]
    return {id(w): int(w.numel() * (w.element_size() - size)) for w in matrices if not w.requires_grad}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
